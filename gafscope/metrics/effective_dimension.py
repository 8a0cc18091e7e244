"""Effective dimension: in how many directions the rows vary."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.geometry import independence
from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import LOG, Resampled, estimate, join_notes
from gafscope.metrics.source import Source, finite_gramian

# More deletions than this are made in groups: each costs a pass over the Gramian.
_MOST_DELETIONS = 64


def effective_dimension(source: Source, *, layer: str | None = None) -> Estimate:
    """Estimate `d_eff = (tr Sigma)^2 / tr(Sigma^2)`, Sigma the covariance of the rows.

    Both from unbiased U-statistics (Himeno and Yamada 2014, J. Multivariate Anal. 130; Chen and Qin
    2010, Ann. Statist. 38(2); see `gafscope.geometry.independence`). Cosines of unrelated rows
    spread by 1 / sqrt(d_eff). The interval is the delete-one jackknife's on the logarithm (above
    64 rows, groups of rows are deleted). At n = 32 it covers 97% for a spectrum i^-0.5 of
    40 directions, 94% for i^-0.7, but 92% for i^-1 (d_eff = 11) and 99% for a flat one.

    Args:
        source: Gramian or gradients, at least 4 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number of at least 1; infinity when the rows show no common direction at all, NaN when
        they are all equal.

    Raises:
        UserError: If there is no such layer, or there are too few rows.

    Example:
        >>> import torch
        >>> from gafscope.gradients import GradientRows
        >>> rows = 1 + torch.randn(32, 50, generator=torch.Generator().manual_seed(0))
        >>> effective_dimension(GradientRows({"w": rows}))
        47.473 [39.710, 56.754] (n=32)
    """
    matrix, note = finite_gramian(source, layer, "effective_dimension", 4)
    value = independence.effective_dimension(matrix)
    statistic = Resampled(matrix.new_tensor(value), _without_groups(matrix))
    found = estimate(statistic, note, LOG, bounds=(1.0, math.inf))
    if math.isfinite(value) and not found.has_interval:
        note = join_notes(note, "an interval needs more rows")
    return Estimate(value, found.low, found.high, len(matrix), note)


def _without_groups(matrix_nn: Float64[Tensor, "n n"]) -> Float64[Tensor, " m"]:
    """The ratio of the two moments without each row, or each of 64 groups of rows."""
    n = len(matrix_nn)
    ratios = []
    for group in torch.arange(n).tensor_split(min(n, _MOST_DELETIONS)):
        kept = torch.ones(n, dtype=torch.bool)
        kept[group] = False
        moments = independence.covariance_moments(matrix_nn[kept][:, kept])
        shown = moments.square_trace > 0
        ratios.append(moments.trace_squared / moments.square_trace if shown else math.nan)
    return matrix_nn.new_tensor(ratios)
