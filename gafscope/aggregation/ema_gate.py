"""The per-parameter gate: each tensor's gradient against its own running average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from torch import Tensor

from gafscope.aggregation.apply import aggregate, equal_weights
from gafscope.aggregation.kinds import Aggregate, Rule
from gafscope.aggregation.mean import Mean
from gafscope.aggregation.reference import (
    check_base,
    check_decay,
    check_reference,
    distance,
    gate_state,
    load_vector,
    wide,
)
from gafscope.aggregation.sequential import check_tau
from gafscope.gradients import GradientRows, Gramian


@final
@dataclass(eq=False)
class EMAGate:
    """Suppress the parameters whose combined gradient disagrees with its own average.

    For each parameter's tensor g of the base rule's update and its average m over earlier
    steps: g is suppressed when the cosine distance of g and m is above tau; then, suppressed or
    not, `m <- decay m + (1 - decay) g`, so that a parameter whose gradient has turned for good
    passes again. A suppressed parameter is left out of the update, so that momentum and weight
    decay do not move it either. Where m does not exist (at the first step) or is zero, g passes:
    the base rule decides alone. When everything is suppressed the step is skipped.

    Asked for by readers of arXiv 2412.18052, after a run that suppressed about 7% at tau 0.99.

    Args:
        rule: The base rule, which combines the micro-gradients.
        decay: Weight of the past, in [0, 1).
        tau: Largest accepted cosine distance, in [0, 2].

    Raises:
        UserError: If an argument is out of range, the base rule calibrates itself, or (when
            called) the state is of another model.

    Example:
        >>> import torch
        >>> gate, rows = EMAGate(), GradientRows({"a": torch.ones(2, 3), "b": torch.ones(2, 1)})
        >>> sorted(gate.aggregate(rows, rows.gramian()).update)
        ['a', 'b']
        >>> rows = GradientRows({"a": torch.ones(2, 3), "b": -torch.ones(2, 1)})
        >>> result = gate.aggregate(rows, rows.gramian())
        >>> sorted(result.update), result.scalars["suppressed"]
        (['a'], 0.25)
    """

    rule: Rule = field(default_factory=Mean)
    decay: float = 0.9
    tau: float = 0.99
    _average: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        check_tau(self.tau)
        check_decay(self.decay, "EMAGate")
        check_base(self.rule, "EMAGate")

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients, and move the averages.

        Args:
            rows: The micro-gradients.
            gramian: Their inner products.

        Returns:
            The base rule's result without the suppressed parameters; `suppressed` is the share
            of the update's numbers in them (a large tensor counts for more than a small one),
            NaN where the base rule skips.
        """
        check_reference(self._average, rows, "EMAGate")
        base = aggregate(self.rule, rows, gramian)
        if not base.decision.step:
            return replace(base, scalars={**base.scalars, "suppressed": math.nan})
        kept = {name: part for name, part in base.update.items() if self._passes(name, part)}
        for name, part in base.update.items():
            self._average[name] = self._moved(name, wide(part))
        decision = base.decision
        if not kept:
            decision = equal_weights(decision, decision.accepted, step=False)
        numbers = sum(part.numel() for part in base.update.values())
        suppressed = 1 - sum(part.numel() for part in kept.values()) / max(numbers, 1)
        return Aggregate(kept, decision, {**base.scalars, "suppressed": suppressed})

    def _passes(self, name: str, gradient: Tensor) -> bool:
        average = self._average.get(name)
        if average is None or not average.any():
            return True
        return distance(gradient, average) <= self.tau

    def _moved(self, name: str, gradient: Tensor) -> Tensor:
        average = self._average.get(name)
        if average is None:
            # A copy: whoever takes the update may clip it in place.
            return gradient.clone()
        return average.to(gradient.device).lerp(gradient, 1 - self.decay)

    def state_dict(self) -> dict[str, Any]:
        """Give the averages by parameter, and the state of the base rule."""
        return gate_state(self.rule, average=self._average)

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put a state back.

        Args:
            state: What `state_dict` gave.

        Raises:
            UserError: If it is the state of another rule.
        """
        self._average = load_vector(self.rule, state, "average", "EMAGate")
