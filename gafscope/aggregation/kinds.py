"""The kinds of rule beside weightings, and what a rule may ask of whoever runs it.

A `Weighting` decides on inner products alone. A `RowRule` needs the gradients themselves. Either
may carry state from step to step (`Stateful`), and may want extra measurements (`Calibrating`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, final, runtime_checkable

from torch import Tensor

from gafscope.aggregation.decision import Decision, Weighting
from gafscope.gradients import GradientRows, Gramian


@final
@dataclass(frozen=True, eq=False)
class Aggregate:
    """What a rule that needs rows made of them.

    Attributes:
        update: Parameter name -> the combined gradient, of the parameter's shape and type.
            Empty when the step is skipped; without the parameters that stay as they are.
        decision: Which rows took part. Where coordinates or layers weigh rows differently its
            weights are those of the mean of the accepted rows.
        scalars: What the rule adds to the record of the step, name -> number.
    """

    update: Mapping[str, Tensor]
    decision: Decision
    scalars: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class RowRule(Protocol):
    """A rule that needs the gradients: coordinate-wise ones, gates, scopes smaller than the model.

    It works wherever k whole gradients are held, so not per sample and not in replay.
    """

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients.

        Args:
            rows: The micro-gradients.
            gramian: Their inner products, with those of each layer, on the CPU. A row whose own
                product is not finite must not take part: a gate marks the rows it rejects so.

        Returns:
            The update. A parameter that it leaves out gets no gradient, so that neither momentum
            nor weight decay moves it.
        """
        ...


@runtime_checkable
class Coordinatewise(Protocol):
    """A `RowRule` that combines coordinate by coordinate, so it works on any part of the rows.

    Where ranks hold shards of the rows each one aggregates its own. The update of a shard may be
    empty; the step is skipped where it is for all of them. Every finite row is accepted.
    """

    coordinatewise: ClassVar[bool]


@final
@dataclass(frozen=True, eq=False)
class ScopedDecision:
    """What a rule decided for each parameter.

    Attributes:
        weights: Parameter name -> (k,) weights of the rows; without the parameters of a scope that
            is skipped.
        decision: As in `Aggregate`.
        scalars: As in `Aggregate`.
    """

    weights: Mapping[str, Tensor]
    decision: Decision
    scalars: Mapping[str, float]


@runtime_checkable
class Scoped(Protocol):
    """A `RowRule` that weighs each parameter's rows by inner products of parameters alone.

    So it works where ranks hold shards of the rows.
    """

    def decide(self, gramian: Gramian, parameters: Mapping[str, Tensor], /) -> ScopedDecision:
        """Decide for each parameter.

        Args:
            gramian: Inner products, with those of each layer, on the CPU.
            parameters: Tensors of the parameters' shapes and types by name, in their order.
        """
        ...


Rule = Weighting | RowRule
"""Anything that turns micro-gradients into an update."""


@runtime_checkable
class Stateful(Protocol):
    """A rule that remembers; each decision may change what it remembers.

    The state holds tensors, numbers, strings and containers of these, and is checkpointed.
    """

    def state_dict(self) -> dict[str, Any]:
        """Give the state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put a state back that `state_dict` gave."""
        ...


@runtime_checkable
class Observing(Protocol):
    """A sequential rule that learns from its own decisions, so that it can stream.

    Whoever runs its `fold` calls `observe` after each decision; `rule(gramian)` does so itself.
    """

    def observe(self, decision: Decision, /) -> None:
        """Learn from a decision that was just taken."""
        ...


@runtime_checkable
class Calibrating(Protocol):
    """A rule that now and then wants a Gramian of more, smaller microbatches of a macrobatch."""

    def due(self, step: int, /) -> bool:
        """Tell whether it wants one before the decision of this step."""
        ...

    def calibrate(self, gramian: Gramian, /) -> None:
        """Take the Gramian in: `calibration_rows` microbatches that make up one macrobatch."""
        ...

    @property
    def calibration_rows(self) -> int:
        """How many microbatches the macrobatch is split into for it, at most."""
        ...


@runtime_checkable
class Recording(Protocol):
    """A rule that adds columns to the record."""

    def scalars(self) -> Mapping[str, float]:
        """Give name -> number as they stood when the last decision was taken."""
        ...
