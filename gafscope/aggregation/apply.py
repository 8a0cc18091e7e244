"""Run a rule of either kind on gradients that are held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from gafscope.aggregation.check import check_decision
from gafscope.aggregation.decision import Decision
from gafscope.aggregation.kinds import Aggregate, Recording, RowRule, Rule
from gafscope.errors import UserError
from gafscope.gradients import GradientRows, Gramian


def aggregate(rule: Rule, rows: GradientRows, gramian: Gramian) -> Aggregate:
    """Combine k micro-gradients by a weighting or by a rule that needs rows.

    Args:
        rule: The rule.
        rows: The micro-gradients.
        gramian: Their inner products, with those of each layer, on the CPU.

    Returns:
        The update, the decision and what the rule adds to the record.

    Raises:
        UserError: If the rule contradicts itself, or its update does not fit the parameters.
    """
    if isinstance(rule, RowRule):
        result = rule.aggregate(rows, gramian)
        check_decision(result.decision, gramian.matrix, rule)
        _check_update(result.update, rows, rule)
        return result
    decision = rule(gramian)
    check_decision(decision, gramian.matrix, rule)
    update = rows.combine(decision.weights) if decision.step else {}
    return Aggregate(update, decision, rule.scalars() if isinstance(rule, Recording) else {})


def equal_weights(base: Decision, accepted: Bool[Tensor, " k"], step: bool) -> Decision:
    """Give the decision that averages the accepted rows, or skips.

    Args:
        base: Where the distances and the finite rows are taken from.
        accepted: (k,), the accepted rows.
        step: Whether to update; it is not without an accepted row.
    """
    step = step and bool(accepted.any())
    accepted = accepted & step
    weights = accepted.double() / max(int(accepted.sum()), 1)
    return replace(base, weights=weights, accepted=accepted, step=step)


def without_rows(gramian: Gramian, dropped: Bool[Tensor, " k"]) -> Gramian:
    """Mark rows as not finite, so that no rule accepts them.

    Args:
        gramian: The Gramian.
        dropped: (k,), the rows to mark.

    Returns:
        The Gramian with NaN in their rows and columns, in the layers too.
    """
    if not bool(dropped.any()):
        return gramian
    gone = (dropped[:, None] | dropped[None, :]).to(gramian.matrix.device)
    layers = {name: torch.where(gone, torch.nan, K) for name, K in gramian.layers.items()}
    matrix = torch.where(gone, torch.nan, gramian.matrix)
    return Gramian(matrix, layers, gramian.engine, gramian.notes)


def rows_needed(rule: RowRule, where: str) -> UserError:
    """Phrase the error for a rule that needs gradients where there are none.

    Args:
        rule: The rule.
        where: Where it was used, and what is kept there.

    Returns:
        The error, ready to be raised.
    """
    name = type(rule).__name__
    return UserError(
        f"The rule {name} needs the gradients themselves and cannot be used {where}; use a "
        "weighting there, such as GAF(tau=0.97), or train with microbatches=k."
    )


def _check_update(update: Mapping[str, Tensor], rows: GradientRows, rule: RowRule) -> None:
    for name, gradient in update.items():
        expected = rows.named[name].shape[1:] if name in rows.named else None
        if gradient.shape != expected:
            raise UserError(
                f"The rule {type(rule).__name__} gave an update of shape {tuple(gradient.shape)} "
                f"for '{name}', where "
                + ("there is no such parameter" if expected is None else f"{tuple(expected)} fits")
                + "; correct the rule."
            )
