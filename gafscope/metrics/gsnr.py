"""Gradient signal-to-noise ratio, coordinate by coordinate.

Shape legend: n finite rows, p coordinates in a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import Resampled, estimate, join_notes
from gafscope.metrics.source import Source, finite_gradients

# Numbers widened to float64 at once.
_BLOCK = 1 << 20
# Sums of squares below this share of the whole are what rounding leaves of zero.
_ROUNDING = 1e-12


def gsnr(source: Source, *, layer: str | None = None) -> Estimate:
    """Average `E[g_j]^2 / Var[g_j]` over the coordinates j (Liu et al. 2020, arXiv 2001.07384).

    With m and s^2 the sample mean and variance (divisor n - 1) of coordinate j, each ratio is
    estimated by `(n - 3) / (n - 1) m^2 / s^2 - 1 / n`, unbiased for Gaussian rows; the plain
    m^2 / s^2 is 1 / n too high already where there is no signal. Coordinates in which all rows are
    equal have no ratio and are left out. The interval is the delete-one jackknife's; it covers
    93-97% from n = 32 on.

    Args:
        source: Gradients, at least 5 finite rows.
        layer: A parameter's name, or None for all of them together.

    Returns:
        A number of at least `-1 / n`: that of the rows as they are; for u samples a row it is u
        times that of single samples.

    Raises:
        UserError: If the source is a Gramian, there is no such layer, or there are too few rows.

    Example:
        >>> import torch
        >>> from gafscope.gradients import GradientRows
        >>> rows = 1 + torch.randn(32, 50, generator=torch.Generator().manual_seed(0))
        >>> gsnr(GradientRows({"w": rows}))
        1.006 [0.854, 1.158] (n=32)
    """
    named, note = finite_gradients(source, layer, "gsnr", 5)
    n = len(next(iter(named.values())))
    statistic, counted, total = _mean_ratio(_blocks(named), n)
    if counted < total:
        note = join_notes(note, f"{total - counted} of {total} coordinates do not vary, left out")
    return estimate(statistic, note)


def _mean_ratio(blocks: Iterable[Float64[Tensor, "n p"]], n: int) -> tuple[Resampled, int, int]:
    """Average the ratio over the coordinates that vary; say how many these are, of how many."""
    value, counted, total = torch.zeros((), dtype=torch.float64), 0, 0
    without, each = torch.zeros(2, n, dtype=torch.float64)
    for block in blocks:
        mean = block.mean(0)
        from_mean = block - mean
        squares = from_mean.square().sum(0)
        varies = squares > _ROUNDING * block.square().sum(0)
        mean, from_mean, squares = mean[varies], from_mean[:, varies], squares[varies]
        counted, total = counted + len(mean), total + len(varies)
        value += _ratio(mean, squares, n).sum()
        left = squares - from_mean.square() * (n / (n - 1))
        still_varies = left > _ROUNDING * squares
        ratios = _ratio(mean - from_mean / (n - 1), left, n - 1)
        without += torch.where(still_varies, ratios, 0.0).sum(1)
        each += still_varies.sum(1)
    return Resampled(value / counted, without / each), counted, total


def _ratio(mean: Tensor, squares: Tensor, n: int) -> Tensor:
    return (n - 3) * mean.square() / squares - 1 / n


def _blocks(named: Mapping[str, Float[Tensor, "n p"]]) -> Iterator[Float64[Tensor, "n p"]]:
    for rows in named.values():
        for block in rows.split(max(_BLOCK // len(rows), 1), dim=1):
            yield block.double().cpu()
