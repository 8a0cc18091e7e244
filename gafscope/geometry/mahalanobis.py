"""Mahalanobis distances of k gradients, from their Gramian alone.

The covariance of k gradients of P > k numbers is singular, so it is shrunk:
`(1 - rho) S + rho m I`, with S the sample covariance (divisor k) and m its mean eigenvalue in the
span of the centred rows. All of it happens in that span, of r <= k - 1 dimensions, where the
identity is the span's own; the other P - r directions, of which k rows say nothing, take no part.
With k > P the span is the whole space and this is the textbook estimate.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.errors import UserError
from gafscope.geometry.centring import centred_gramian
from gafscope.geometry.rows import finite_rows

# Eigenvalues below this share of the rows' squared norms are rounding errors of the Gramian.
_ROUNDING = 1e-13


def span_dimension(matrix_kk: Float64[Tensor, "k k"]) -> int:
    """Count the dimensions that the finite rows span around their mean.

    Args:
        matrix_kk: Gramian, (k, k) float64.

    Returns:
        r, at most the number of finite rows less 1; 0 when they are all alike.

    Example:
        >>> span_dimension(torch.eye(3, dtype=torch.float64))
        2
    """
    return len(_spectrum(_kept(matrix_kk))[0])


def ledoit_wolf_shrinkage(matrix_kk: Float64[Tensor, "k k"]) -> float:
    """Estimate how far to shrink the covariance towards a multiple of the identity.

    With centred rows x_i, S = sum_i x_i x_i^T / k and m = tr(S) / r,
    `rho = min(b^2 / d^2, 1)`, `b^2 = sum_i |x_i x_i^T - S|^2 / k^2`, `d^2 = |S - m I|^2`
    (Ledoit and Wolf, 2004, "A well-conditioned estimator for large-dimensional covariance
    matrices", Journal of Multivariate Analysis 88), in the r dimensions that the rows span.

    Args:
        matrix_kk: Gramian, (k, k) float64; rows that are not finite are left out.

    Returns:
        rho in [0, 1]; 1 where S is a multiple of the identity already.

    Example:
        >>> ledoit_wolf_shrinkage(torch.eye(4, dtype=torch.float64))
        1.0
    """
    kept = _kept(matrix_kk)
    values, vectors = _spectrum(kept)
    if not len(values):
        return 1.0
    k = len(kept)
    values = values / values.max()
    trace, square = float(values.sum()) / k, float(values.square().sum()) / k**2
    distance = square - trace**2 / len(values)
    if distance <= _ROUNDING * square:
        return 1.0
    fourth_powers = (vectors.square() @ values).square().sum()
    spread = max(float(fourth_powers) / k**2 - square / k, 0.0)
    return min(spread / distance, 1.0)


def mahalanobis_squares(
    matrix_kk: Float64[Tensor, "k k"], shrinkage: float | str = "ledoit-wolf"
) -> Float64[Tensor, " k"]:
    """Give the squared Mahalanobis distance of each row to the mean of the others.

    `d_i^2 = v_i^T ((1 - rho) S + rho m I)^-1 v_i` with `v_i = g_i - mean of the others`
    (= k / (k - 1) times g_i less the mean of all), S the covariance of all finite rows (divisor
    k) and m = tr(S) / r. For rows of one distribution d_i^2 is about r = `span_dimension`.

    Args:
        matrix_kk: Gramian, (k, k) float64.
        shrinkage: rho in [0, 1], or "ledoit-wolf" to estimate it.

    Returns:
        (k,) float64, free of units; NaN for a row that is not finite or has no other beside it,
        0 when all rows are alike.

    Raises:
        UserError: If the shrinkage is out of range or unknown, or the covariance is singular:
            without shrinkage, k rows in k - 1 dimensions are all equally far from their mean.

    Example:
        >>> mahalanobis_squares(torch.eye(2, dtype=torch.float64)).round(decimals=9)
        tensor([4., 4.], dtype=torch.float64)
    """
    rho = check_shrinkage(shrinkage)
    finite = finite_rows(matrix_kk)
    kept = _kept(matrix_kk)
    k = len(kept)
    squares = torch.full((len(matrix_kk),), math.nan, dtype=torch.float64, device=kept.device)
    if k < 2:
        return squares
    values, vectors = _spectrum(kept)
    r = len(values)
    if rho is None:
        rho = ledoit_wolf_shrinkage(matrix_kk)
    if rho == 0 and r == k - 1:
        raise UserError(
            f"The covariance of {k} gradients is singular without shrinkage: it needs more "
            f"gradients than dimensions, but these {k} span all {r} that they can; use "
            "shrinkage='ledoit-wolf' or a number above 0."
        )
    if not r:
        return torch.where(finite, 0.0, squares)
    # Relative to the largest, since squares of tiny numbers vanish.
    values = values / values.max()
    shrunk = (1 - rho) * values / k + rho * values.sum() / (k * r)
    squares[finite] = (vectors.square() @ (values / shrunk)) * (k / (k - 1)) ** 2
    return squares


def check_shrinkage(shrinkage: float | str) -> float | None:
    """Refuse a shrinkage that is neither a share nor a known estimate.

    Args:
        shrinkage: rho in [0, 1] or "ledoit-wolf".

    Returns:
        rho, None where it is to be estimated.

    Raises:
        UserError: If it is anything else.
    """
    if shrinkage == "ledoit-wolf":
        return None
    if isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise UserError(
            "shrinkage must be 'ledoit-wolf' or a number in [0, 1] (0 the plain covariance, 1 a "
            f"multiple of the identity), but is {shrinkage!r}."
        )
    return float(shrinkage)


def _kept(matrix_kk: Tensor) -> Tensor:
    finite = finite_rows(matrix_kk)
    return matrix_kk[finite][:, finite]


def _spectrum(kept_cc: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (r,) above rounding and eigenvectors (c, r) of the Gramian of centred rows."""
    if not len(kept_cc):
        return kept_cc.new_zeros(0), kept_cc.new_zeros(0, 0)
    values, vectors = torch.linalg.eigh(centred_gramian(kept_cc))
    real = values > _ROUNDING * kept_cc.trace()
    return values[real], vectors[:, real]
