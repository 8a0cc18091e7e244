"""What independent gradients look like: unbiased moments of their covariance, from one Gramian.

The rows g_1..g_k share a mean mu and a covariance Sigma, neither of which is known. Everything
here is blind to mu. Rows that are not finite are left out.

Shape legend: k rows, n of them finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.geometry.centring import centred_gramian
from gafscope.geometry.rows import finite_rows

MINIMUM_ROWS = 4
"""The unbiased estimate of tr(Sigma^2) compares two differences of rows, so it needs four."""


@final
@dataclass(frozen=True)
class CovarianceMoments:
    """Unbiased estimates for the covariance Sigma of gradient rows.

    Attributes:
        trace: tr Sigma, the mean squared distance of a row from the mean.
        trace_squared: (tr Sigma)^2.
        square_trace: tr(Sigma^2); by chance it can be negative.
    """

    trace: float
    trace_squared: float
    square_trace: float


def covariance_moments(matrix_kk: Float64[Tensor, "k k"]) -> CovarianceMoments:
    """Estimate tr Sigma, (tr Sigma)^2 and tr(Sigma^2) without bias, whatever the rows' law.

    The last two are the U-statistics with kernels `|a - b|^2 |c - d|^2 / 4` and
    `<a - b, c - d>^2 / 4` over all quadruples of different rows, in O(k^2) as Himeno and Yamada
    (2014, J. Multivariate Anal. 130, section 2) write them; the last is that of Chen and Qin
    (2010), Ann. Statist. 38(2).

    Args:
        matrix_kk: Gramian, (k, k) float64.

    Returns:
        The moments; NaN when fewer than 4 rows are finite.

    Example:
        >>> covariance_moments(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]).double())).trace
        2.5
    """
    centred = centred_gramian(_finite_part(matrix_kk))
    n = len(centred)
    if n < MINIMUM_ROWS:
        return CovarianceMoments(math.nan, math.nan, math.nan)
    trace = float(centred.trace()) / (n - 1)
    square = float(centred.square().sum()) / (n - 1) ** 2
    fourth = float(centred.diagonal().square().sum()) / (n - 1)
    scale = (n - 1) / (n * (n - 2) * (n - 3))
    return CovarianceMoments(
        trace=trace,
        trace_squared=scale * (2 * square + (n * n - 3 * n + 1) * trace**2 - n * fourth),
        square_trace=scale * ((n - 1) * (n - 2) * square + trace**2 - n * fourth),
    )


def effective_dimension(matrix_kk: Float64[Tensor, "k k"]) -> float:
    """Estimate in how many directions the rows vary, `d_eff = (tr Sigma)^2 / tr(Sigma^2)`.

    The cosine of two independent rows with mean 0 has standard deviation `1 / sqrt(d_eff)`, up to
    terms of a higher order. Numerator and denominator are unbiased, see `covariance_moments`.

    Args:
        matrix_kk: Gramian, (k, k) float64.

    Returns:
        A number of at least 1; infinity when the rows show no common direction at all, NaN when
        fewer than 4 are finite or all are equal.

    Example:
        >>> rows = torch.randn(32, 50, generator=torch.Generator().manual_seed(0)).double()
        >>> 40 < effective_dimension(rows @ rows.T) < 60
        True
    """
    moments = covariance_moments(matrix_kk)
    if not moments.trace > 0:
        return math.nan
    if moments.square_trace <= 0:
        return math.inf
    return max(moments.trace_squared / moments.square_trace, 1.0)


def decorrelated(matrix_kk: Float64[Tensor, "k k"]) -> Float64[Tensor, "m m"]:
    """Give the Gramian of n - 1 rows without the common mean that are uncorrelated again.

    Taking the rows' average off each of them makes any two correlate by -1 / (n - 1). Instead
    each row but the last becomes

        y_i = g_i - g_n / sqrt(n) - b (g_1 + ... + g_{n-1}),    b = (1 - 1 / sqrt(n)) / (n - 1),

    whose factors add up to 0 (the mean is gone) and are orthonormal from row to row (Gaussian
    rows stay independent, with the covariance they had). Row i still makes up most of y_i.

    Args:
        matrix_kk: Gramian, (k, k) float64.

    Returns:
        (n - 1, n - 1) float64, n the number of finite rows. Its eigenvalues are those of the
        centred Gramian but for one 0.

    Example:
        >>> decorrelated(torch.ones(3, 3).double()).abs().max() < 1e-15
        tensor(True)
    """
    matrix = _finite_part(matrix_kk)
    n = len(matrix)
    if n < 2:
        return matrix.new_zeros(0, 0)
    factors = torch.eye(n - 1, n, dtype=matrix.dtype, device=matrix.device)
    factors[:, :-1] -= (1 - n**-0.5) / (n - 1)
    factors[:, -1] = -(n**-0.5)
    return factors @ matrix @ factors.T


def _finite_part(matrix_kk: Tensor) -> Tensor:
    finite = finite_rows(matrix_kk)
    return matrix_kk[finite][:, finite]
