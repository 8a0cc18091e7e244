"""What the scopes share: a weighting that decides for each group of parameters on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gafscope.aggregation.apply import equal_weights, without_rows
from gafscope.aggregation.check import check_decision
from gafscope.aggregation.decision import Decision, Weighting
from gafscope.aggregation.kinds import Aggregate, RowRule, Rule, Scoped, ScopedDecision, Stateful
from gafscope.errors import UserError
from gafscope.geometry import finite_rows
from gafscope.gradients import GradientRows, Gramian
from gafscope.gradients.types import combine_rows, sum_of_layers


def decide_groups(
    rule: Rule, gramian: Gramian, parameters: Mapping[str, Tensor], groups: Sequence[Sequence[str]]
) -> ScopedDecision:
    """Let a weighting decide for each group of parameters, on that group's Gramian.

    Args:
        rule: A weighting, which `check_scoped` has passed.
        gramian: Inner products of the k micro-gradients, with those of each layer.
        parameters: Tensors of the parameters' shapes and types by name.
        groups: Parameter names; each parameter in one group.

    Returns:
        The parameters of the groups that step, by their group's own weights; those of a group
        that is skipped are left out. A row counts as accepted when any group accepts it; its
        distance is the mean of its distances in the groups that visited it, weighted by their
        numbers. Scalars: `accepted_share`, the accepted share of the rows, averaged over the
        groups with the same weights, and `skipped_share`, the share of groups that are skipped.
        A row that is not finite in one group takes part in none.
    """
    assert isinstance(rule, Weighting), "the scope was checked"
    finite = finite_rows(gramian.matrix)
    visible = without_rows(gramian, ~finite)
    chosen, decisions, sizes = {}, [], []
    for names in groups:
        own = Gramian(sum_of_layers({name: visible.of(name) for name in names}))
        decision = rule(own)
        check_decision(decision, own.matrix, rule)
        if decision.step:
            chosen |= dict.fromkeys(names, decision.weights)
        decisions.append(decision)
        sizes.append(sum(parameters[name].numel() for name in names))
    accepted = torch.stack([decision.accepted for decision in decisions])
    weights = torch.tensor(sizes, dtype=torch.float64)
    steps = [decision.step for decision in decisions]
    base = replace(decisions[0], distances=_mean_distances(decisions, sizes), finite=finite)
    scalars = {
        "accepted_share": float(weights @ accepted.double().mean(1) / weights.sum()),
        "skipped_share": 1 - sum(steps) / len(steps),
    }
    return ScopedDecision(chosen, equal_weights(base, accepted.any(0), any(steps)), scalars)


def aggregate_scoped(rule: Scoped, rows: GradientRows, gramian: Gramian) -> Aggregate:
    """Combine k micro-gradients by the weights of each parameter.

    Args:
        rule: The rule.
        rows: The micro-gradients.
        gramian: Their inner products, with those of each layer.

    Returns:
        The update, without the parameters of the scopes that are skipped.
    """
    result = rule.decide(gramian, {name: values[0] for name, values in rows.named.items()})
    update = {
        name: combine_rows(values, result.weights[name])
        for name, values in rows.named.items()
        if name in result.weights
    }
    return Aggregate(update, result.decision, result.scalars)


def check_scoped(rule: Rule, scope: str) -> None:
    """Refuse rules that cannot decide group by group.

    Args:
        rule: The rule.
        scope: The scope's name, for the message.

    Raises:
        UserError: If it needs rows or remembers, or is no rule.
    """
    if isinstance(rule, RowRule) or not isinstance(rule, Weighting) or isinstance(rule, type):
        raise UserError(
            f"{scope} needs a weighting, which decides on a Gramian, such as GAF(tau=0.97), but "
            f"got {rule!r}."
        )
    if isinstance(rule, Stateful):
        raise UserError(
            f"{scope} cannot hold {type(rule).__name__}, whose memory would mix up the groups of "
            "parameters; use a rule without state, such as GAF(tau=0.97)."
        )


def _mean_distances(decisions: Sequence[Decision], sizes: Sequence[int]) -> Tensor:
    """Average each row's distances over the groups that visited it; NaN where none did."""
    distances = torch.stack([decision.distances for decision in decisions])
    weights = torch.tensor(sizes, dtype=torch.float64)[:, None] * ~distances.isnan()
    return (distances.nan_to_num() * weights).sum(0) / weights.sum(0)
