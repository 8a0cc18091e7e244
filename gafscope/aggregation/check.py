"""Refuse decisions that contradict themselves, before they become an update."""

from __future__ import annotations

import math

from jaxtyping import Float64
from torch import Tensor

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.kinds import Rule
from gafscope.errors import UserError


def check_decision(decision: Decision, matrix_kk: Float64[Tensor, "k k"], rule: Rule) -> None:
    """Check that a decision, of a rule of the user's own perhaps, does not contradict itself.

    Args:
        decision: The decision.
        matrix_kk: The Gramian that it was taken on, (k, k).
        rule: The rule, for the message.

    Raises:
        UserError: If a field has another length than k, an accepted gradient or a weight is not
            finite, a rejected one has a weight, or a step is made of nothing.
    """
    k, fields = len(matrix_kk), (decision.weights, decision.accepted, decision.distances)
    shapes = {tuple(part.shape) for part in (*fields, decision.finite)}
    problem = ""
    if shapes != {(k,)}:
        problem = f"has fields of shape {sorted(shapes)} for k = {k} micro-gradients"
    else:
        # As lists: a dozen operations on tiny tensors would cost more than the decision.
        weights, accepted = decision.weights.tolist(), decision.accepted.tolist()
        own = matrix_kk.diagonal().tolist()
        if any(
            used and not math.isfinite(square) for used, square in zip(accepted, own, strict=True)
        ):
            problem = "accepts a micro-gradient that is not finite"
        elif not all(map(math.isfinite, weights)):
            problem = f"has weights that are not finite, {weights}"
        elif any(weight != 0 and not used for weight, used in zip(weights, accepted, strict=True)):
            problem = "gives a weight to a micro-gradient that it does not accept"
        elif decision.step and not any(accepted):
            problem = "steps but accepts nothing (step=False skips)"
    if problem:
        raise UserError(
            f"The decision of the rule {type(rule).__name__} {problem}; correct the rule."
        )
