"""Which directions stand out of the noise: the Gramian's eigenvalues against a random bulk.

Shape legend: n finite rows, N = n - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.geometry.independence import decorrelated
from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import without_interval
from gafscope.metrics.source import Source, finite_gramian

# The .99 quantile of the Tracy-Widom law of order 1: higher than usual, as many places are tried.
_TRACY_WIDOM = 2.0234
# Eigenvalues below this share of the rows' squared norms are what rounding leaves of zero.
_ROUNDING = 1e-13


@final
@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of the rows' covariance and the edge of the bulk among them.

    Attributes:
        eigenvalues: (n - 1,), those of the sample covariance (divisor n - 1) that n rows can show,
            largest first, in squared units of the gradient.
        edge: What the largest eigenvalue of the bulk stays below with probability .99.
        outliers: How many eigenvalues stand out; a count, without an interval.
        bulk_dimension: Effective dimension of the bulk, i.e. of what is left without the outliers.
    """

    eigenvalues: Float64[Tensor, " m"]
    edge: float
    outliers: Estimate
    bulk_dimension: float


def spectrum(source: Source, *, layer: str | None = None) -> Spectrum:
    """Compare the eigenvalues of the rows' covariance with a Marchenko-Pastur bulk.

    N rows of isotropic noise in d dimensions, of total variance t, have their largest eigenvalue
    near `t / (d N) (sqrt(N) + sqrt(d))^2` (Marchenko and Pastur 1967), and below that plus 2.02
    Tracy-Widom widths in 99 of 100 cases (Johnstone 2001, Ann. Statist. 29(2), with the halves of
    Ma 2012, arXiv 1203.0839). Gradients have far more coordinates than directions in which they
    vary, so d is not their number: it is the effective dimension of the bulk, which gives the bulk
    its width, `2 t / sqrt(d N)` to either side for d much larger than N. t and d come from the
    bulk's own eigenvalues, since a large outlier would hide both itself and others: eigenvalue r
    is held against the edge of those below it (Kritchman and Nadler 2008, Chemom. Intell. Lab.
    Syst. 94), with one at the edge in its own place, and the last r up to half of the eigenvalues
    that are not 0 that exceeds it counts. Flat noise shows no outlier in 97% of cases or more from
    n = 16 on (86-95% at n = 8). A spectrum that decays steadily, i^-0.5 or faster, has no bulk to
    speak of: its first directions do stand out.

    Args:
        source: Gramian or gradients, at least 8 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        Eigenvalues, edge and number of outliers.

    Raises:
        UserError: If there is no such layer, or there are too few rows.

    Example:
        >>> import torch
        >>> from gafscope.gradients import GradientRows
        >>> rows = 1 + torch.randn(32, 50, generator=torch.Generator().manual_seed(0))
        >>> spectrum(GradientRows({"w": rows})).outliers
        0.000 (n=32)
    """
    matrix, note = finite_gramian(source, layer, "spectrum", 8)
    n = len(matrix)
    values = torch.linalg.eigvalsh(decorrelated(matrix)).flip(0)
    real = values > _ROUNDING * matrix.trace()
    values = torch.where(real, values, 0.0) / (n - 1)
    exceeding = [r for r in range(int(real.sum()) // 2) if values[r] > _edge_for(values, r)[0]]
    standing = exceeding[-1] + 1 if exceeding else 0
    edge, dimension = _edge_for(values, standing)
    return Spectrum(values, edge, without_interval(float(standing), n, note), dimension)


def outlier_directions(source: Source, *, layer: str | None = None) -> Estimate:
    """Count the eigenvalues that stand out of the bulk, see `spectrum`.

    Args:
        source: Gramian or gradients, at least 8 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A whole number from 0 to (n - 1) / 2.

    Raises:
        UserError: If there is no such layer, or there are too few rows.
    """
    return spectrum(source, layer=layer).outliers


def _edge_for(values_m: Tensor, r: int) -> tuple[float, float]:
    """Edge and dimension of the bulk against which eigenvalue r (from 0) is held."""
    below = values_m[r + 1 :]
    # Without its own largest eigenvalue the bulk would look too narrow; with an outlier in that
    # place, too wide.
    largest = values_m[r].clamp(max=_edge(below)[0])
    return _edge(torch.cat([largest[None], below]))


def _edge(values_m: Tensor) -> tuple[float, float]:
    """Edge and effective dimension of noise that has these eigenvalues.

    For m Gaussian rows with mean 0 and covariance Sigma, E tr(G)^2 = m^2 t^2 + 2 m s and
    E tr(G^2) = m t^2 + m (m + 1) s with G their Gramian, t = tr(Sigma) and s = tr(Sigma^2).
    """
    m, total = len(values_m), float(values_m.sum())
    from_equal = float(values_m.square().sum()) - total**2 / m
    if from_equal <= 0:
        return total / m, math.inf if total else math.nan
    s = from_equal / ((m + 2) * (m - 1))
    squared_t = max(total**2 - 2 * m * s, 0.0) / m**2
    dimension = max(squared_t / s, 1.0)
    p, q = math.sqrt(m - 0.5), math.sqrt(dimension - 0.5)
    width = (p + q) * (1 / p + 1 / q) ** (1 / 3)
    return math.sqrt(squared_t) / dimension * ((p + q) ** 2 + _TRACY_WIDOM * width), dimension
