"""How much the lengths of the rows differ."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import RECIPROCAL, Resampled, estimate, join_notes, mean_of_rows
from gafscope.metrics.source import Source, finite_gramian


def gradient_norm_spread(source: Source, *, layer: str | None = None) -> Estimate:
    """Give the coefficient of variation of the norms, `sd |g_i| / mean |g_i|` (divisor n - 1).

    Pearson's coefficient of variation. The interval is the delete-one jackknife's on the
    reciprocal; it covers 93-97% from n = 32 on.

    Args:
        source: Gramian or gradients, at least 2 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number of at least 0: 0 when all rows are equally long; NaN when all are zero.

    Raises:
        UserError: If there is no such layer, or there are too few rows.

    Example:
        >>> import torch
        >>> from gafscope.gradients import GradientRows
        >>> rows = 1 + torch.randn(32, 50, generator=torch.Generator().manual_seed(0))
        >>> gradient_norm_spread(GradientRows({"w": rows}))
        0.099 [0.084, 0.121] (n=32)
    """
    matrix, note = finite_gramian(source, layer, "gradient_norm_spread", 2)
    norms = matrix.diagonal().sqrt()
    if not norms.any():
        note = join_notes(note, "all gradients are zero")
    return estimate(_deviation(norms).over(mean_of_rows(norms)), note, RECIPROCAL)


def _deviation(values_n: Float64[Tensor, " n"]) -> Resampled:
    """Standard deviation of n numbers, and without each of them."""
    n = len(values_n)
    from_mean = values_n - values_n.mean()
    total = from_mean.square().sum()
    # Without row i the sum of squares about the new mean drops by n / (n - 1) times its own.
    left = total - from_mean.square() * (n / (n - 1))
    return Resampled(torch.sqrt(total / (n - 1)), torch.sqrt(left.clamp(min=0) / (n - 2)))
