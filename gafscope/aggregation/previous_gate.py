"""Compare each micro-gradient with the last update instead of with its own macrobatch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from gafscope.aggregation.kinds import Aggregate, Rule
from gafscope.aggregation.mean import Mean
from gafscope.aggregation.reference import (
    check_base,
    check_reference,
    gate_rows,
    gate_state,
    load_vector,
    square,
)
from gafscope.aggregation.sequential import check_tau
from gafscope.gradients import GradientRows, Gramian


@final
@dataclass(eq=False)
class PreviousGate:
    """Reject the micro-gradients that are farther than tau from the previous macro-gradient.

    The previous macro-gradient is the combined gradient of the last step that the gate let
    happen, however long ago. Micro-gradients within cosine distance tau of it go to the base
    rule, as if the others were not finite. At the first step there is no previous one, so the
    base rule decides alone. A combined gradient of exactly zero has no direction and is not
    remembered.

    Proposed as future work in arXiv 2412.18052. Once the gradient has turned by more than tau
    nothing is accepted any more; the trainer says so after 200 rejections in a row.

    Args:
        tau: Largest accepted cosine distance, in [0, 2].
        rule: The base rule.

    Raises:
        UserError: If tau is out of range, the base rule calibrates itself, or (when called) the
            state is of another model.

    Example:
        >>> import torch
        >>> gate, rows = PreviousGate(tau=0.9), GradientRows({"w": torch.eye(2)})
        >>> gate.aggregate(rows, rows.gramian()).update["w"]
        tensor([0.5000, 0.5000])
        >>> rows = GradientRows({"w": torch.tensor([[2.0, 2.0], [-1.0, 0.0]])})
        >>> gate.aggregate(rows, rows.gramian()).update["w"]
        tensor([2., 2.])
    """

    tau: float = 0.97
    rule: Rule = field(default_factory=Mean)
    _previous: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        check_tau(self.tau)
        check_base(self.rule, "PreviousGate")

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients, and remember the combined one.

        Args:
            rows: The micro-gradients.
            gramian: Their inner products.

        Returns:
            What the base rule made of the rows within tau; the decision's distances are those to
            the previous macro-gradient, NaN at the first step.
        """
        check_reference(self._previous, rows, "PreviousGate")
        result = gate_rows(self.rule, rows, gramian, self._previous, self.tau)
        if result.decision.step and square(result.update) > 0:
            # A copy: whoever takes the update may clip it in place.
            self._previous = {name: part.clone() for name, part in result.update.items()}
        return result

    def state_dict(self) -> dict[str, Any]:
        """Give the previous macro-gradient, and the state of the base rule."""
        return gate_state(self.rule, previous=self._previous)

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put a state back.

        Args:
            state: What `state_dict` gave.

        Raises:
            UserError: If it is the state of another rule.
        """
        self._previous = load_vector(self.rule, state, "previous", "PreviousGate")
