"""Compare each micro-gradient with the direction in which training has been going."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from gafscope.aggregation.kinds import Aggregate, Rule
from gafscope.aggregation.mean import Mean
from gafscope.aggregation.reference import (
    Vector,
    check_base,
    check_decay,
    check_reference,
    gate_rows,
    gate_state,
    load_vector,
    square,
    wide,
)
from gafscope.aggregation.sequential import check_tau
from gafscope.gradients import GradientRows, Gramian


@final
@dataclass(eq=False)
class DirectionGate:
    """Reject the micro-gradients farther than tau from the average accepted direction.

    After each step with the combined gradient u the direction moves, `d <- decay d + (1 - decay)
    u / |u|`; the first one is `u / |u|` itself. Every update counts alike, however long it is.
    Micro-gradients within cosine distance tau of d go to the base rule, as if the others were
    not finite. At the first step there is no direction, so the base rule decides alone.

    Args:
        tau: Largest accepted cosine distance, in [0, 2].
        decay: Weight of the past, in [0, 1); 0 compares with the previous update.
        rule: The base rule.

    Raises:
        UserError: If an argument is out of range, the base rule calibrates itself, or (when
            called) the state is of another model.

    Example:
        >>> import torch
        >>> gate, rows = DirectionGate(tau=0.9), GradientRows({"w": torch.eye(2)})
        >>> gate.aggregate(rows, rows.gramian()).update["w"]
        tensor([0.5000, 0.5000])
        >>> gate.state_dict()["direction"]["w"]
        tensor([0.7071, 0.7071])
    """

    tau: float = 0.97
    decay: float = 0.9
    rule: Rule = field(default_factory=Mean)
    _direction: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        check_tau(self.tau)
        check_decay(self.decay, "DirectionGate")
        check_base(self.rule, "DirectionGate")

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients, and move the direction.

        Args:
            rows: The micro-gradients.
            gramian: Their inner products.

        Returns:
            What the base rule made of the rows within tau; the decision's distances are those to
            the direction, NaN at the first step.
        """
        check_reference(self._direction, rows, "DirectionGate")
        result = gate_rows(self.rule, rows, gramian, self._direction, self.tau)
        length = math.sqrt(square(result.update))
        if result.decision.step and length > 0:
            self._direction = self._moved(result.update, length)
        return result

    def _moved(self, update: Vector, length: float) -> dict[str, Tensor]:
        """Give the direction after an update; a parameter without one counts as zeros there."""
        moved = {}
        past = self.decay if self._direction else 0.0
        for name in dict.fromkeys([*self._direction, *update]):
            old, new = self._direction.get(name), update.get(name)
            if new is None:
                assert old is not None
                moved[name] = old * past
                continue
            part = wide(new) * ((1 - past) / length)
            moved[name] = part if old is None else part + old.to(part.device) * past
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Give the direction, and the state of the base rule."""
        return gate_state(self.rule, direction=self._direction)

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put a state back.

        Args:
            state: What `state_dict` gave.

        Raises:
            UserError: If it is the state of another rule.
        """
        self._direction = load_vector(self.rule, state, "direction", "DirectionGate")
