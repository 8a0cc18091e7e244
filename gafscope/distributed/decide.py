"""One decision on the Gramian of all ranks' rows, and the own shard of the update that follows.

Every rank runs this on the same sums and so decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from gafscope.aggregation import (
    ByLayer,
    Coordinatewise,
    Decision,
    RowRule,
    Rule,
    Scoped,
    Weighting,
    check_decision,
    coordinates_decision,
)
from gafscope.distributed.collectives import sum_over_ranks
from gafscope.distributed.order import rank_order, reordered, restored
from gafscope.distributed.shards import Shards
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.gradients.types import combine_rows, sum_of_layers


@final
@dataclass(frozen=True, eq=False)
class Agreed:
    """What all ranks agreed on.

    Attributes:
        decision: The rule's decision, its rows in the order of the ranks.
        updates: The own shard of the update, one tensor for each of the `Shards`; None where the
            step is skipped. Zeros where parameters are left out.
        left_out: Parameters that stay as they are, though the step is taken.
        scalars: What a rule that needs rows adds to the record.
    """

    decision: Decision
    updates: list[Tensor] | None
    left_out: frozenset[str] = frozenset()
    scalars: Mapping[str, float] = field(default_factory=dict)


def check_shardable(rule: Rule) -> None:
    """Refuse rules that need whole gradients, of which no rank holds any but its own.

    Args:
        rule: The rule.

    Raises:
        UserError: If it is one of these, or no rule at all.
    """
    if isinstance(rule, type) or not isinstance(rule, Weighting | RowRule):
        raise UserError(
            "rule must be a rule, such as GAF(tau=0.97), or a function from a Gramian to a "
            f"Decision, but is {rule!r}."
        )
    if isinstance(rule, RowRule) and not isinstance(rule, Coordinatewise | Scoped):
        raise UserError(
            f"The rule {type(rule).__name__} needs whole gradients, but every rank holds only its "
            "shard of the others'; use a weighting, such as GAF(tau=0.97), or a rule that works on "
            "shards: SignAgreement, TrimmedMean, CoordinateMedian, ByLayer, ByBucket."
        )


def wants_layers(rule: Rule) -> bool:
    """Tell whether a rule decides on the Gramians of the layers."""
    return isinstance(rule, Scoped)


def decide_on_shards(
    rule: Rule,
    parts: Sequence[Shards],
    gramian: Gramian,
    parameters: Mapping[str, Tensor],
    order: list[int],
    group: dist.ProcessGroup | None,
) -> Agreed:
    """Decide, and combine the own shards.

    Collective for the coordinate-wise rules, which count what they kept.

    Args:
        rule: One that `check_shardable` has passed.
        parts: The own shards of the rows; several where these came in several vectors.
        gramian: Of the whole rows, in the order of the ranks; with layers if `wants_layers`.
        parameters: The trainable parameters by name.
        order: In which the rows are visited.
        group: The process group.

    Returns:
        The decision and the own shards of the update.

    Raises:
        UserError: If the rule's decision contradicts itself.
    """
    visited = reordered(gramian, order)
    if isinstance(rule, Scoped):
        return _scoped(rule, parts, visited, parameters, order)
    if isinstance(rule, Coordinatewise):
        return _coordinatewise(rule, parts, gramian, group)
    assert isinstance(rule, Weighting), "the rule was checked"
    # Before the decision, after which a rule that learns has another threshold.
    fold = getattr(rule, "fold", None)
    decision = rule(visited)
    check_decision(decision, visited.matrix, rule)
    decision = restored(decision, order)
    updates = [part.combine(decision, fold, order) for part in parts] if decision.step else None
    return Agreed(decision, updates)


def _scoped(
    rule: Scoped,
    parts: Sequence[Shards],
    visited: Gramian,
    parameters: Mapping[str, Tensor],
    order: list[int],
) -> Agreed:
    result = rule.decide(visited, parameters)
    decision = restored(result.decision, order)
    if not decision.step:
        return Agreed(decision, None, scalars=result.scalars)
    updates = []
    for part in parts:
        update = part.empty_update()
        for name, rows in part.rows().named.items():
            if name in result.weights:
                start, stop = part.own[name]
                update[start:stop] = combine_rows(rows, rank_order(result.weights[name], order))
        updates.append(update)
    left_out = frozenset(parameters) - result.weights.keys()
    return Agreed(decision, updates, left_out, result.scalars)


def _coordinatewise(
    rule: Coordinatewise, parts: Sequence[Shards], gramian: Gramian, group: dist.ProcessGroup | None
) -> Agreed:
    assert isinstance(rule, RowRule), "the rule was checked"
    updates, kept = [], 0.0
    for part in parts:
        update = part.empty_update()
        rows = part.rows()
        if rows.named:
            result = rule.aggregate(rows, gramian)
            kept += part.numbers * result.scalars["kept"]
            for name, values in result.update.items():
                start, stop = part.own[name]
                update[start:stop] = values
        updates.append(update)
    # Other ranks may have kept what this one did not.
    numbers = float(sum(part.numbers for part in parts))
    (totals,) = sum_over_ranks(torch.tensor([kept, numbers]).double(), group=group)
    share = float(totals[0] / totals[1])
    decision = coordinates_decision(gramian, share)
    return Agreed(decision, updates if decision.step else None, scalars={"kept": share})


def decide_by_part(
    rule: Rule, parts: Sequence[Shards], matrices: Sequence[Tensor], order: list[int]
) -> Agreed:
    """Let a weighting decide for each vector that the rows came in on its own.

    Args:
        rule: A weighting without state.
        parts: The own shards of the rows.
        matrices: Gramians of the whole rows, one a part.
        order: In which the rows are visited.

    Returns:
        The decision, as `ByLayer` sums it up, and the own shards of the update. `left_out` holds
        the numbers, as strings, of the parts whose parameters stay as they are.
    """
    layers = {str(i): matrix for i, matrix in enumerate(matrices)}
    visited = reordered(Gramian(sum_of_layers(layers), layers), order)
    result = ByLayer(rule).decide(
        visited, {str(i): part.rows_ks[0] for i, part in enumerate(parts)}
    )
    decision = restored(result.decision, order)
    left_out = frozenset(layers) - result.weights.keys()
    if not decision.step:
        return Agreed(decision, None, left_out, result.scalars)
    updates = [
        combine_rows(part.rows_ks, rank_order(result.weights[name], order))
        if name in result.weights
        else part.empty_update()
        for name, part in zip(layers, parts, strict=True)
    ]
    return Agreed(decision, updates, left_out, result.scalars)
