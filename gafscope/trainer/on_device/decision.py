"""A sequential rule's decision in tensors, so that nothing waits for the device.

The arithmetic is `aggregation.sequential.Visitor`'s, with both outcomes of each visit computed and
one of them chosen.

Shape legend: k microbatches; P numbers of a gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from gafscope.aggregation import Fold
from gafscope.geometry import finite_rows

_CANCELLED = 1e-13  # as in `aggregation.sequential`


@final
@dataclass(frozen=True, eq=False)
class DeviceDecision:
    """What was decided; all of it lies on the device of the Gramian.

    Attributes:
        weights: (k,) float64, of the gradients in the update; all 0 without one.
        step: (), whether to update.
        taken: (k,), which gradients went into the running vector; of use if `step` is true.
        distances: (k,) float64, to the running vector at each visit; NaN where there was none.
        finite: (k,), which gradients are finite.
        divisor: (), the update is the running vector divided by this.
        norm: (), norm of the update.
    """

    weights: Float64[Tensor, " k"]
    step: Bool[Tensor, ""]
    taken: Bool[Tensor, " k"]
    distances: Float64[Tensor, " k"]
    finite: Bool[Tensor, " k"]
    divisor: Float64[Tensor, ""]
    norm: Float64[Tensor, ""]


def decide_on_device(fold: Fold, matrix_kk: Float64[Tensor, "k k"]) -> DeviceDecision:
    """Visit k gradients in order.

    Args:
        fold: How the rule runs.
        matrix_kk: Their inner products; NaN in rows and columns of those that are not finite.

    Returns:
        The decision.
    """
    finite = finite_rows(matrix_kk)
    products = torch.where(finite[:, None] & finite[None, :], matrix_kk, 0.0)
    nothing = torch.zeros((), dtype=torch.float64, device=matrix_kk.device)
    # <s, s> of the running vector s; what it would be were all that went in orthogonal; how much
    # that was; and <g_i, s> for all i.
    square_s, orthogonal, count, dots = nothing, nothing, nothing, torch.zeros_like(products[0])
    weights, one = torch.zeros_like(dots), torch.zeros_like(products).fill_diagonal_(1.0)
    taken, distances = [], []
    for i, row in enumerate(products):
        square = row[i]
        alive = torch.where(square_s <= _CANCELLED * orthogonal, 0.0, square_s)
        distance = _distance(dots[i], square, alive)
        compared = finite[i] & ((orthogonal > 0) | (square == 0))
        take = finite[i] & (~compared | (distance <= fold.tau))
        keep = torch.where(count > 0, fold.keep, nothing)
        add = torch.where(count > 0, fold.add, nothing + 1.0)
        folded = keep * keep * square_s + 2 * keep * add * dots[i] + add * add * square
        square_s = torch.where(take, folded, square_s)
        orthogonal = torch.where(take, keep * keep * orthogonal + add * add * square, orthogonal)
        dots = torch.where(take, keep * dots + add * row, dots)
        weights = torch.where(take, keep * weights + add * one[i], weights)
        count = count + take
        taken.append(take)
        distances.append(torch.where(compared, distance, math.nan))
    divisor = count.clamp(min=1.0) if fold.divide else nothing + 1.0
    step = count >= fold.minimum
    return DeviceDecision(
        weights=torch.where(step, weights / divisor, 0.0),
        step=step,
        taken=torch.stack(taken),
        distances=torch.stack(distances),
        finite=finite,
        divisor=divisor,
        norm=square_s.clamp(min=0.0).sqrt() / divisor,
    )


def combine_on_device(
    fold: Fold, decision: DeviceDecision, rows_kP: Float[Tensor, "k P"]
) -> Float[Tensor, " P"]:
    """Fold the gradients that were taken into the update.

    Args:
        fold: How the rule runs.
        decision: Its decision on them.
        rows_kP: The gradients; those that were not taken may hold NaN.

    Returns:
        The update; anything where the decision is not to step.
    """
    running, begun = torch.zeros_like(rows_kP[0]), torch.zeros_like(decision.step)
    for row, take in zip(rows_kP, decision.taken, strict=True):
        kept = running if fold.keep == 1.0 else running * fold.keep
        folded = torch.where(begun, torch.add(kept, row, alpha=fold.add), row)
        running = torch.where(take, folded, running)
        begun = begun | take
    return running / decision.divisor if fold.divide else running


def _distance(dot: Tensor, square_a: Tensor, square_b: Tensor) -> Tensor:
    """`geometry.pair_distance` in tensors."""
    distance = (1 - dot / (square_a.sqrt() * square_b.sqrt())).clamp(0.0, 2.0)
    distance = torch.where((square_a <= 0) | (square_b <= 0), 1.0, distance)
    return torch.where(torch.isfinite(square_a) & torch.isfinite(square_b), distance, math.nan)
