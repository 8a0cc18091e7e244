"""How the cosine of two independent gradients is distributed: estimated spectrum, quantiles.

With x and y independent rows of mean 0 and covariance Sigma (eigenvalues l_i, Gaussian in the
eigenvectors' directions),

    cos(x, y) = sum_i l_i x_i y_i / sqrt(sum_i l_i x_i^2  sum_i l_i y_i^2),    x_i, y_i ~ N(0, 1).

It does not depend on the scale of Sigma, so neither on the microbatch size, as long as the
spectrum keeps its shape.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.errors import UserError
from gafscope.geometry.independence import (
    MINIMUM_ROWS,
    covariance_moments,
    decorrelated,
)
from gafscope.geometry.rows import finite_rows

_DRAWS = 1 << 14
# Eigenvalues that make up less of tr(Sigma^2) than this are told apart by nothing but noise.
_SHARE = 0.005
# The largest eigenvalue of noise scatters about its edge by a share of order rows^(-2/3).
_SCATTER = 3.0
# Below this, the excess kurtosis of <x, y>, 6 tr(Sigma^4) / tr(Sigma^2)^2, moves the 1% quantile
# by less than 2%.
_NORMAL = 0.03 / 6


@final
@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a covariance: some large ones, and a flat rest.

    Attributes:
        leading: The large ones, in descending order.
        bulk_size: How many the rest are; any number of at least 1.
        bulk_height: The size of each of these.
    """

    leading: tuple[float, ...]
    bulk_size: float
    bulk_height: float

    def moment(self, power: int) -> float:
        """Give tr(Sigma^power)."""
        return (
            sum(value**power for value in self.leading) + self.bulk_size * self.bulk_height**power
        )

    @property
    def effective_dimension(self) -> float:
        """Give (tr Sigma)^2 / tr(Sigma^2)."""
        return self.moment(1) ** 2 / self.moment(2)


def null_spectrum(matrix_kk: Float64[Tensor, "k k"]) -> Spectrum:
    """Estimate the spectrum of the rows' covariance from few rows of many numbers.

    A sample eigenvalue s_j is too large by what all smaller ones leak into it. To first order the
    population's is the harmonic mean of its gaps to the smaller ones,

        l_j = n / sum_{i > j} 1 / (s_j - s_i)      (n = k - 1 sample eigenvalues),

    the inverse of the companion Stieltjes transform there (Bai and Ding 2012, Random Matrices:
    Theory Appl. 1(1)). Those that stand out from the noise and carry at least 0.5% of tr(Sigma^2)
    are kept; the rest is flat and brings tr Sigma and tr(Sigma^2) to their unbiased estimates,
    the second as far as that is possible.

    Args:
        matrix_kk: Gramian, (k, k) float64.

    Returns:
        The spectrum, in squared units of the gradient.

    Raises:
        UserError: If fewer than 4 rows are finite, or all are equal.
    """
    matrix = matrix_kk.cpu()
    moments = covariance_moments(matrix)
    if not moments.trace > 0:
        n = int(finite_rows(matrix).sum())
        raise UserError(
            f"The spread of independent gradients needs at least {MINIMUM_ROWS} finite rows that "
            f"are not all equal, but this Gramian has {n} finite of {len(matrix)}; use more "
            "microbatches."
        )
    first = moments.trace
    second = min(max(moments.square_trace, 1e-12 * first**2), first**2)
    products = decorrelated(matrix)
    values = (torch.linalg.eigvalsh(products).flip(0) / len(products)).tolist()
    least = math.sqrt(_SHARE * second)
    leading: list[float] = []
    for j in range(len(values) - 1):
        value = min(_population_eigenvalue(values, j), first)
        rest, rest_square = first - value, second - value**2
        if value < least or not _stands_out(value, rest, rest_square, len(values)):
            break
        leading.append(value)
        first, second = rest, rest_square
    if first <= 0:
        return Spectrum(tuple(leading), 1.0, 0.0)
    # One direction of the rest is at most as large as all of it, and no larger than a kept one.
    most = first * min(first, leading[-1] if leading else first)
    second = min(max(second, 1e-12 * first**2), most)
    return Spectrum(tuple(leading), first**2 / second, second / first)


def null_quantile(spectrum: Spectrum, false_accept: float) -> float:
    """Give the cosine distance below which independent rows fall with a given probability.

    `P(1 - cos(x, y) <= tau) = false_accept`, for the law at the top of this file. Where <x, y>
    is close to normal, tau = 1 - z / sqrt(d_eff) with z the normal quantile; else tau is the
    quantile of 16,384 draws, always the same ones.

    Args:
        spectrum: The eigenvalues.
        false_accept: The probability, in (0, 0.5].

    Returns:
        tau, in [0, 1].

    Raises:
        UserError: If the probability is out of range.

    Example:
        >>> round(null_quantile(Spectrum((), 400, 1.0), 0.05), 4)
        0.9178
    """
    check_false_accept(false_accept)
    if spectrum.moment(4) <= _NORMAL * spectrum.moment(2) ** 2:
        from scipy.special import ndtri

        return min(max(1 + float(ndtri(false_accept)) / spectrum.effective_dimension**0.5, 0.0), 1)
    # The law is symmetric, so each draw counts with both signs.
    return 1 - float(np.quantile(np.abs(_cosines(spectrum)), 1 - 2 * false_accept))


def null_interval(
    matrix_kk: Float64[Tensor, "k k"], false_accept: float
) -> tuple[float, float, float]:
    """Estimate the threshold of a false-accept rate from one Gramian, with its interval.

    Args:
        matrix_kk: Gramian, (k, k) float64, with at least 5 finite rows.
        false_accept: As in `null_quantile`.

    Returns:
        tau, and the ends of its 95% interval by the delete-one jackknife over rows, taken on
        log(1 - tau).

    Raises:
        UserError: As `null_spectrum` and `null_quantile`.
    """
    from scipy.special import stdtrit

    finite = finite_rows(matrix_kk)
    matrix = matrix_kk[finite][:, finite]
    tau = null_quantile(null_spectrum(matrix), false_accept)
    n = len(matrix)
    logs = []
    for i in range(n):
        rest = torch.arange(n) != i
        part = null_quantile(null_spectrum(matrix[rest][:, rest]), false_accept)
        logs.append(math.log(max(1 - part, 1e-12)))
    error = math.sqrt((n - 1) * float(np.var(logs)))
    factor = math.exp(float(stdtrit(n - 1, 0.975)) * error)
    return tau, max(1 - (1 - tau) * factor, 0.0), 1 - (1 - tau) / factor


def check_false_accept(false_accept: float) -> None:
    """Refuse a false-accept rate that is none.

    Args:
        false_accept: The rate.

    Raises:
        UserError: If it is outside (0, 0.5].
    """
    if not 0 < false_accept <= 0.5:
        raise UserError(
            "false_accept is the share of independent micro-gradients that may be accepted and "
            f"must lie in (0, 0.5], but it is {false_accept}; 0.05 is usual."
        )


def _population_eigenvalue(values: list[float], j: int) -> float:
    gaps = [values[j] - smaller for smaller in values[j + 1 :]]
    if min(gaps) <= 0:
        return 0.0
    return len(values) / sum(1 / gap for gap in gaps)


def _stands_out(value: float, rest: float, rest_square: float, rows: int) -> bool:
    """Tell whether noise alone would hardly give this value, were the rest flat.

    The edge of the noise is h (1 + sqrt(m / rows)) for m directions of height h (Baik, Ben Arous
    and Peche 2005).
    """
    # More than the unbiased tr(Sigma^2) allows: a few long rows, not a direction that all share.
    if rest <= 0 or rest_square <= 0:
        return False
    height, size = rest_square / rest, rest**2 / rest_square
    slack = 1 + _SCATTER * rows ** (-2 / 3)
    return value > slack * height * (1 + math.sqrt(size / rows))


def _cosines(spectrum: Spectrum) -> np.ndarray:
    """Draw cosines of independent rows, (16384,).

    Of the flat rest of m directions of height h only three numbers matter: h chi2_m, the squared
    length of x there; sqrt(h) w, the part of y along it; and h chi2_{m - 1}, the rest of y.
    """
    r, m, h = len(spectrum.leading), spectrum.bulk_size, spectrum.bulk_height
    normals = _normals(2 * r + 3)
    heights = np.asarray(spectrum.leading)[:, None]
    x, y, along = normals[3::2], normals[4::2], normals[2]
    x_bulk = h * _chi_square(m, normals[0])
    y_bulk = h * (along**2 + _chi_square(m - 1, normals[1]))
    dots = (heights * x * y).sum(0) + np.sqrt(x_bulk * h) * along
    return dots / np.sqrt(((heights * x**2).sum(0) + x_bulk) * ((heights * y**2).sum(0) + y_bulk))


def _chi_square(degrees: float, normals: np.ndarray) -> np.ndarray:
    """Turn normal draws into chi-square ones (Wilson and Hilferty 1931); any degrees will do."""
    if degrees <= 0:
        return np.zeros_like(normals)
    part = 2 / (9 * degrees)
    return degrees * np.maximum(1 - part + math.sqrt(part) * normals, 1e-3) ** 3


@functools.lru_cache(maxsize=4)
def _normals(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, _DRAWS))
