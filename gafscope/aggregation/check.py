"""Refuse decisions that contradict themselves, before they become an update."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.aggregation.decision import Decision, Weighting
from gafscope.errors import UserError
from gafscope.geometry import finite_rows


def check_decision(decision: Decision, matrix_kk: Float64[Tensor, "k k"], rule: Weighting) -> None:
    """Check that a decision, of a rule of the user's own perhaps, does not contradict itself.

    Args:
        decision: The decision.
        matrix_kk: The Gramian that it was taken on, (k, k).
        rule: The rule, for the message.

    Raises:
        UserError: If a field has another length than k, an accepted gradient or a weight is not
            finite, a rejected one has a weight, or a step is made of nothing.
    """
    k, accepted, weights = len(matrix_kk), decision.accepted, decision.weights
    found = {tuple(part.shape) for part in (weights, accepted, decision.distances, decision.finite)}
    problem = ""
    if found != {(k,)}:
        problem = f"has fields of shape {sorted(found)} for k = {k} micro-gradients"
    elif bool((accepted & ~finite_rows(matrix_kk)).any()):
        problem = "accepts a micro-gradient that is not finite"
    elif not bool(torch.isfinite(weights).all()):
        problem = f"has weights that are not finite, {weights.tolist()}"
    elif bool((weights[~accepted] != 0).any()):
        problem = "gives a weight to a micro-gradient that it does not accept"
    elif decision.step and not bool(accepted.any()):
        problem = "steps but accepts nothing (step=False skips)"
    if problem:
        raise UserError(
            f"The decision of the rule {type(rule).__name__} {problem}; correct the rule."
        )
