"""Cosine distance: 0 for aligned gradients, 1 for orthogonal ones, 2 for opposed ones."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.geometry.rows import finite_rows, zero_rows


def cosine_distance(matrix_kk: Float64[Tensor, "k k"]) -> Float64[Tensor, "k k"]:
    """Turn a Gramian into cosine distances, `1 - K[i, j] / sqrt(K[i, i] K[j, j])`.

    Args:
        matrix_kk: Gramian, (k, k) float64.

    Returns:
        (k, k) in [0, 2]. A zero row is at distance 1 from every finite row; the row and the
        column of a gradient that is not finite are NaN.

    Example:
        >>> cosine_distance(torch.tensor([[1.0, -2.0], [-2.0, 4.0]], dtype=torch.float64))
        tensor([[0., 2.],
                [2., 0.]], dtype=torch.float64)
    """
    norms = matrix_kk.diagonal().sqrt()
    # Two square roots rather than the root of the product, which overflows first.
    distance = 1 - matrix_kk / (norms[:, None] * norms[None, :])
    zero = zero_rows(matrix_kk)
    distance = torch.where(zero[:, None] | zero[None, :], 1.0, distance).clamp(0.0, 2.0)
    distance.diagonal()[~zero] = 0.0
    finite = finite_rows(matrix_kk)
    return torch.where(finite[:, None] & finite[None, :], distance, math.nan)


def pair_distance(dot: float, square_a: float, square_b: float) -> float:
    """Give the cosine distance of two vectors from their three inner products.

    Args:
        dot: <a, b>.
        square_a: <a, a>.
        square_b: <b, b>.

    Returns:
        A number in [0, 2]; 1 when either vector is zero, NaN when either is not finite.

    Example:
        >>> pair_distance(0.0, 4.0, 9.0)
        1.0
    """
    if not (math.isfinite(square_a) and math.isfinite(square_b)):
        return math.nan
    if square_a <= 0 or square_b <= 0:
        return 1.0
    distance = 1 - dot / (math.sqrt(square_a) * math.sqrt(square_b))
    return min(max(distance, 0.0), 2.0)


def mean_pairwise_distance(matrix_kk: Float64[Tensor, "k k"]) -> float:
    """Average the cosine distance over all pairs i < j of finite gradients.

    Args:
        matrix_kk: Gramian, (k, k) float64.

    Returns:
        The mean in [0, 2]; NaN when fewer than two gradients are finite.
    """
    distance = cosine_distance(matrix_kk)
    rows, columns = torch.triu_indices(*matrix_kk.shape, offset=1)
    return float(torch.nanmean(distance[rows, columns]))
