"""What the coordinate-wise rules share: each parameter's finite rows, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gafscope.aggregation.apply import equal_weights
from gafscope.aggregation.decision import Decision
from gafscope.aggregation.kinds import Aggregate
from gafscope.aggregation.mean import Mean
from gafscope.geometry import finite_rows
from gafscope.gradients import GradientRows, Gramian

Combine = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(c, *shape) finite rows -> the combined gradient and a mask of its kept coordinates."""

_HALF = (torch.bfloat16, torch.float16)


def combine_coordinates(
    rows: GradientRows, gramian: Gramian, combine: Combine, minimum: int
) -> Aggregate:
    """Combine the finite rows coordinate by coordinate, parameter by parameter.

    Args:
        rows: The k micro-gradients.
        gramian: Their inner products; a row whose own is not finite is left out.
        combine: Combines the rows of one parameter, in float32 at least.
        minimum: Fewer finite rows skip the step.

    Returns:
        All finite rows are accepted; the distances are those to the running sum, as `Mean`
        records them. `kept` is the share of coordinates that were kept; the step is skipped
        where it is 0.
    """
    finite = finite_rows(gramian.matrix)
    update: dict[str, Tensor] = {}
    masks: list[Tensor] = []
    if int(finite.sum()) >= minimum:
        for name, values in rows.named.items():
            part = values if bool(finite.all()) else values[finite.to(values.device)]
            wide = part.float() if part.dtype in _HALF else part
            combined, mask = combine(wide)
            update[name] = combined.to(values.dtype)
            masks.append(mask.sum())
    numbers = sum(values[0].numel() for values in rows.named.values())
    kept = sum(int(count) for count in masks) / max(numbers, 1)
    decision = coordinates_decision(gramian, kept)
    return Aggregate(update if decision.step else {}, decision, {"kept": kept})


def coordinates_decision(gramian: Gramian, kept: float) -> Decision:
    """Give the decision of a coordinate-wise rule: every finite row takes part.

    Args:
        gramian: Inner products of the k micro-gradients.
        kept: Share of the coordinates that were kept; 0 skips the step.
    """
    return equal_weights(Mean()(gramian), finite_rows(gramian.matrix), kept > 0)


def sign_sum(part: Tensor) -> Tensor:
    """Add up the signs of the rows.

    Args:
        part: (c, *shape).

    Returns:
        (*shape), from -c to c; a zero counts for neither side.
    """
    # Row by row: the signs of all rows at once would be a second copy of them.
    total = torch.zeros_like(part[0])
    for row in part:
        total += row.sign()
    return total
