"""Inner products of gradients in float64, exact enough for any cosine distance above 1e-9.

A float32 inner product of millions of terms is off by up to 1e-4, which hides every small
distance. Here the numbers are widened to float64 block by block, so that no whole copy is made.
That costs little more than reading them, and no autocast region or reduced matmul precision
(TF32) around the call can touch float64 products.

Shape legend: k, m rows; n numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gafscope.geometry.rows import blank_rows

# Blocks that stay in the processor's cache; a GPU wants few large kernels instead.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 22}
# Tensors of up to so many numbers are multiplied together: calls would cost more than products.
_SMALL = 1 << 18


def dot(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float64[Tensor, ""]:
    """Sum the products of two tensors of one shape, `sum(a * b)`, as a float64 number.

    Args:
        a: Any shape.
        b: The same shape as `a`.

    Returns:
        A float64 scalar tensor on the device of `a`.

    Example:
        >>> dot(torch.ones(3), torch.tensor([1.0, 2.0, 3.0]))
        tensor(6., dtype=torch.float64)
    """
    a_n, b_n = flat_pair(a.detach(), b.detach())
    size = _block_size(a_n)
    # One buffer for all blocks: fresh pages for each would cost more than the products.
    wide = torch.empty(2, min(size, a_n.numel()), dtype=torch.float64, device=a_n.device)
    total = torch.zeros((), dtype=torch.float64, device=a_n.device)
    for left, right in zip(a_n.split(size), b_n.split(size), strict=True):
        total += torch.dot(wide[0, : len(left)].copy_(left), wide[1, : len(right)].copy_(right))
    return total


def dot_lists(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> float:
    """Sum the products of two gradients that come as one tensor a parameter.

    Args:
        a: Tensors; None stands for zeros.
        b: Tensors of the same shapes; None stands for zeros.

    Returns:
        `sum_p <a_p, b_p>`.

    Example:
        >>> dot_lists([torch.ones(2), None], [torch.ones(2), torch.ones(5)])
        2.0
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    large = [(x, y) for x, y in pairs if x.numel() > _SMALL]
    small = [(x, y) for x, y in pairs if x.numel() <= _SMALL]
    totals = [dot(x, y) for x, y in large]
    # The small ones are laid end to end, by device.
    for device in {x.device for x, _ in small}:
        flat = [flat_pair(x, y) for x, y in small if x.device == device]
        totals.append(dot(torch.cat([x for x, _ in flat]), torch.cat([y for _, y in flat])))
    return float(sum(total.item() for total in totals))


def gramian(rows_kn: Float[Tensor, "k n"]) -> Float64[Tensor, "k k"]:
    """Multiply every row with every row, `K = R R^T`, in float64.

    Args:
        rows_kn: (k, n) in any floating type.

    Returns:
        (k, k) float64, symmetric, on the rows' device. A row that holds a NaN or an infinity
        gives NaN in its row and column.

    Example:
        >>> gramian(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        tensor([[5., 6.],
                [6., 9.]], dtype=torch.float64)
    """
    matrix = cross_gramian(rows_kn, rows_kn)
    return blank_rows((matrix + matrix.T) / 2)


def cross_gramian(
    rows_kn: Float[Tensor, "k n"], others_mn: Float[Tensor, "m n"]
) -> Float64[Tensor, "k m"]:
    """Multiply every row of one set with every row of another, `R S^T`, in float64.

    Args:
        rows_kn: (k, n) in any floating type.
        others_mn: (m, n) in the same type.

    Returns:
        (k, m) float64 on the rows' device.

    Example:
        >>> cross_gramian(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([[11.,  2.]], dtype=torch.float64)
    """
    same = others_mn is rows_kn
    rows_kn, others_mn = rows_kn.detach(), others_mn.detach()
    k, m = len(rows_kn), len(others_mn)
    total = torch.zeros(k, m, dtype=torch.float64, device=rows_kn.device)
    width = max(_block_size(rows_kn) // max(k, m, 1), 1)
    for left, right in zip(rows_kn.split(width, 1), others_mn.split(width, 1), strict=True):
        wide = left.double()
        total += wide @ (wide if same else right.double()).T
    return total


def _block_size(tensor: Tensor) -> int:
    return _BLOCK.get(tensor.device.type, _BLOCK["cuda"])


def flat_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten both in one order, without a copy where channels-last memory allows.

    Args:
        a: Any shape.
        b: The same shape.

    Returns:
        Two vectors; element i of both comes from the same place.
    """
    if a.ndim == 4 and not a.is_contiguous() and a.stride() == b.stride():
        return a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1)
    return a.reshape(-1), b.reshape(-1)
