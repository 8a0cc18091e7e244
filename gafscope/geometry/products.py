"""Inner products of gradients, exact enough for cosine distances of 1e-6.

A plain float32 inner product of millions of terms is off by up to 1e-4, which hides every small
distance. Here small tensors are multiplied in float64; in large ones, where the rounding errors
of many short sums average out, runs of 256 float32 products are summed and the runs added in
float64, as fast as the memory. Both keep a distance of 1e-6 right to better than 1%.
Rows in bfloat16 or float16 are widened to float32 first.

Shape legend: k, m rows; n numbers a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_RUN = 256
# Blocks that stay in the processor's cache; a GPU wants few large kernels instead.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 26}
# Up to so many numbers a tensor (a row of a matrix) is multiplied in float64.
_SMALL_PAIR, _SMALL_ROW = 1 << 18, 1 << 20
# Rows with norms between these have float32 products that neither vanish nor overflow.
_SAFE = (1e-12, 1e12)


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
    a_n, b_n = _flat_pair(a.detach(), b.detach())
    if a_n.numel() <= _SMALL_PAIR or torch.float64 in (a.dtype, b.dtype):
        return torch.dot(a_n.double(), b_n.double())
    total = _dot_in_runs(a_n, b_n)
    small, large = _SAFE
    if small * small <= abs(total) <= large * large:
        return total
    return torch.dot(a_n.double(), b_n.double())


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
    large = [(x, y) for x, y in pairs if x.numel() > _SMALL_PAIR]
    small = [(x, y) for x, y in pairs if x.numel() <= _SMALL_PAIR]
    totals = [dot(x, y) for x, y in large]
    # Many small tensors cost more in calls than in products: lay them end to end, by device.
    for device in {x.device for x, _ in small}:
        flat = [_flat_pair(x, y) for x, y in small if x.device == device]
        totals.append(dot(torch.cat([x for x, _ in flat]), torch.cat([y for _, y in flat])))
    return float(sum(total.item() for total in totals))


def _dot_in_runs(a_n: Tensor, b_n: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=a_n.device)
    size = _block_size(a_n)
    # One buffer for all blocks: fresh pages for each would cost more than the products.
    buffer = torch.empty(min(size, a_n.numel()), device=a_n.device)
    for a_part, b_part in zip(a_n.split(size), b_n.split(size), strict=True):
        products = torch.mul(a_part.float(), b_part.float(), out=buffer[: a_part.numel()])
        whole = products.numel() // _RUN * _RUN
        total += products[:whole].view(-1, _RUN).sum(1).sum(dtype=torch.float64)
        if whole < products.numel():
            total += products[whole:].sum(dtype=torch.float64)
    return total


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
    matrix = (matrix + matrix.T) / 2
    bad = ~torch.isfinite(matrix.diagonal())
    matrix[bad] = torch.nan
    matrix[:, bad] = torch.nan
    return matrix


def cross_gramian(
    rows_kn: Float[Tensor, "k n"], others_mn: Float[Tensor, "m n"]
) -> Float64[Tensor, "k m"]:
    """Multiply every row of one set with every row of another, `R S^T`, in float64.

    Rows so large or so small that their float32 products would overflow or vanish are
    multiplied in float64.

    Args:
        rows_kn: (k, n) in any floating type.
        others_mn: (m, n) in the same type.

    Returns:
        (k, m) float64 on the rows' device.

    Example:
        >>> cross_gramian(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([[11.,  2.]], dtype=torch.float64)
    """
    rows_kn, others_mn = rows_kn.detach(), others_mn.detach()
    exact = _needs_float64(rows_kn) or (others_mn is not rows_kn and _needs_float64(others_mn))
    k, m = len(rows_kn), len(others_mn)
    total = torch.zeros(k, m, dtype=torch.float64, device=rows_kn.device)
    # The k x m products of a run must not outgrow the block that they come from.
    width = max(_block_size(rows_kn) // max(k, m, 1) // _RUN, 1) * _RUN
    for left, right in zip(rows_kn.split(width, 1), others_mn.split(width, 1), strict=True):
        whole = 0 if exact else left.shape[1] // _RUN * _RUN
        if whole:
            runs = left[:, :whole].float().reshape(k, -1, _RUN).transpose(0, 1)
            others = right[:, :whole].float().reshape(m, -1, _RUN).permute(1, 2, 0)
            total += torch.bmm(runs, others).sum(0, dtype=torch.float64)
        total += left[:, whole:].double() @ right[:, whole:].double().T
    return total


def _needs_float64(rows_kn: Tensor) -> bool:
    if rows_kn.dtype == torch.float64 or rows_kn.shape[1] <= _SMALL_ROW:
        return True
    small, large = _SAFE
    norms = torch.linalg.vector_norm(rows_kn, dim=1, dtype=torch.float32)
    suspects = rows_kn[(norms < small) | (norms > large)]
    if not len(suspects):
        return False
    largest = torch.maximum(suspects.amax(1), -suspects.amin(1))
    return bool((torch.isfinite(largest) & (largest > 0)).any())


def _block_size(tensor: Tensor) -> int:
    return _BLOCK.get(tensor.device.type, _BLOCK["cuda"])


def _flat_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten both in one order, without a copy where channels-last memory allows."""
    if a.ndim == 4 and not a.is_contiguous() and a.stride() == b.stride():
        return a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1)
    return a.reshape(-1), b.reshape(-1)
