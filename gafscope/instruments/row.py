"""The row of scalars of a recorded step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gafscope import geometry
from gafscope.gradients import Gramian
from gafscope.instruments.macrobatch import Outcome
from gafscope.metrics.signal import signal_share


def scalar_row(
    step: int, outcome: Outcome, stepped: bool, losses: Sequence[Tensor | float], lr: float
) -> dict[str, Any]:
    """Make the row of one step.

    Args:
        step: The step, from 0.
        outcome: What the macrobatch gave.
        stepped: Whether the optimizer stepped.
        losses: What `Scope.loss` was given.
        lr: Learning rate of the first parameter group.

    Returns:
        Column name -> value. `accepted` counts microbatches, `not_finite` lists those with a NaN
        or an infinity, `distance_mean` is over all pairs and NaN where no Gramian was measured,
        `noise_scale` is in microbatches, `grad_norm` on the loop's own scale before clipping.
    """
    decision, gramian = outcome.decision, outcome.gramian
    known = [float(loss.detach().mean()) if isinstance(loss, Tensor) else loss for loss in losses]
    return {
        "step": step,
        "loss": sum(known) / len(known) if known else math.nan,
        "accepted": int(decision.accepted.sum()),
        "stepped": stepped,
        "distance_mean": geometry.mean_pairwise_distance(gramian.matrix) if gramian else math.nan,
        "distance_to_sum": decision.distances.tolist(),
        "not_finite": (~decision.finite).nonzero().flatten().tolist(),
        "noise_scale": noise_scale(gramian) if gramian else math.nan,
        "grad_norm": outcome.norm,
        "lr": lr,
        **outcome.scalars,
    }


def noise_scale(gramian: Gramian) -> float:
    """Estimate `B_simple = tr(Sigma) / |mu|^2` in microbatches (arXiv 1812.06162).

    `|mu|^2` is the mean entry off the diagonal, `tr(Sigma)` the mean diagonal entry less that.

    Args:
        gramian: The Gramian.

    Returns:
        Times u it is in samples. NaN where fewer than two rows are finite, or their mean product
        is not positive, so that the rows cannot tell it from infinity.
    """
    finite = geometry.finite_rows(gramian.matrix)
    if finite.sum() < 2:
        return math.nan
    share = float(signal_share(gramian.matrix[finite][:, finite]).value)
    return max(1 / share - 1, 0.0) if share > 0 else math.nan
