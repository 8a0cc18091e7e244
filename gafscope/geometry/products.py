"""Inner products of gradients in float64, exact enough for any cosine distance above 1e-9.

A float32 inner product of millions of terms is off by up to 1e-4, which hides every small
distance. Here the numbers are widened to float64 block by block, so that no whole copy is made.
That costs little more than reading them, and no autocast region or reduced matmul precision
(TF32) around the call can touch float64 products.

Shape legend: k, m rows; n numbers a row.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gafscope.geometry.rows import blank_rows

# Blocks that stay in the processor's cache; a GPU wants few large kernels instead.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 22}


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
