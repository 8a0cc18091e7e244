"""One macrobatch of a watched loop: from its first backward to the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from torch import nn

from gafscope import geometry
from gafscope.aggregation import Decision, Recording, Weighting, check_decision
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.gradients.batch_norm import RunningStatistics
from gafscope.instruments.capture import Row, holds_gradient
from gafscope.instruments.filtering import Filter, Holding, Streaming
from gafscope.instruments.ghost_rows import GhostRows
from gafscope.instruments.memory import GHOST, Rows
from gafscope.instruments.settings import Settings
from gafscope.instruments.split import SplitRows
from gafscope.instruments.splitter import Splitter


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """What a macrobatch gave.

    Attributes:
        decision: In filter mode what was done, else what the rule would have done.
        gramian: Inner products, on the loop's own scale without a GradScaler's factor; None
            where they are not measured.
        norm: Norm of the gradient before clipping, on the same scale.
        scalars: What the rule adds to the record.
    """

    decision: Decision
    gramian: Gramian | None
    norm: float
    scalars: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(eq=False)
class Macrobatch:
    """Takes the rows of one macrobatch in.

    Args:
        parameters: The watched parameters by name.
        settings: What `watch` was told.
        measures: Compute the Gramian.
        rows: Where rows are kept; emptied at the start.
        statistics: BatchNorm's running statistics.
        products: Multiplies rows.
    """

    parameters: Mapping[str, nn.Parameter]
    settings: Settings
    measures: bool
    rows: Rows | SplitRows | GhostRows
    statistics: RunningStatistics
    products: geometry.StreamingProducts

    def __post_init__(self):
        # Small ones first: whether there is any number in them is soon known.
        self._by_size = sorted(self.parameters.values(), key=lambda p: p.numel())
        self._reset()
        if self._filter is not None:
            self.statistics.begin()

    def _reset(self) -> None:
        self.count = 0
        self._holding = False
        self.rows.drop()
        self._filter = self._make_filter() if self.settings.filters else None

    @property
    def alone(self) -> bool:
        """Whether there is only one row, with nothing to compare it to."""
        return self.rows.alone if isinstance(self.rows, SplitRows) else self.count == 1

    def begins(self) -> None:
        """Note that a backward begins; what was emptied meanwhile led to no step."""
        if self.count and self._holding and not holds_gradient(self._by_size):
            self._reset()
            if self._filter is not None:
                self.statistics.restart()

    def add(self, row: Row) -> None:
        """Take the row of a backward that is over.

        Args:
            row: The row.

        Raises:
            UserError: If the rule needs all k rows and there are more.
        """
        self.count += 1
        kept = self.measures or isinstance(self._filter, Holding)
        if kept:
            self.rows.add(row)
        if self._filter is not None:
            finite = self._filter.visit(
                row, self.settings.scale.factor(), self.settings.scale.active
            )
            self.statistics.collect(finite)
        self._holding = holds_gradient(self._by_size)

    def finish(self) -> Outcome:
        """Decide, just before the optimizer's step.

        Returns:
            The outcome. `.grad` is as the loop left it.

        Raises:
            UserError: If the loop makes another number of backwards than it was said to make.
        """
        factor = self.settings.scale.factor()
        gramian = None
        if self.measures:
            gramian = self.rows.gramian(self.parameters, self.settings.layers, factor)
        if self._filter is not None:
            decision, norm = self._filter.finish()
            added = dict(self._filter.scalars)
            norm = norm / factor if decision.step else math.nan
        else:
            assert gramian is not None
            self._check_count()
            decision, added = self._hypothetical(gramian), {}
            norm = math.sqrt(max(float(gramian.matrix.sum()), 0.0))
        self.rows.drop()
        if isinstance(self.settings.rule, Recording):
            added |= self.settings.rule.scalars()
        return Outcome(decision, gramian, norm, added)

    def _hypothetical(self, gramian: Gramian) -> Decision:
        rule = self.settings.rule
        assert isinstance(rule, Weighting)
        decision = rule(gramian)
        check_decision(decision, gramian.matrix, rule)
        return decision

    def _check_count(self) -> None:
        if self.settings.microbatches is not None and self.count != self.settings.microbatches:
            raise UserError(
                f"watch was told microbatches={self.settings.microbatches}, but the loop steps "
                f"after {self.count} backwards; give the right number or leave it out."
            )

    def _make_filter(self) -> Filter:
        fold = getattr(self.settings.rule, "fold", None)
        if fold is not None:
            parameters = list(self.parameters.values())
            shared = self.measures
            return Streaming(fold, self.settings.rule, parameters, self.products, shared)
        assert self.settings.microbatches is not None and isinstance(self.rows, Rows)
        return Holding(self.settings.rule, self.settings.microbatches, self.parameters, self.rows)


def hooked_rows(
    settings: Settings, splitter: Splitter, parameters: Mapping[str, nn.Parameter]
) -> SplitRows | GhostRows | None:
    """Put the ghost engine's hooks into the model's calls, if `watch` was told to.

    Args:
        settings: What `watch` was told.
        splitter: Knows the model.
        parameters: The watched parameters by name.

    Returns:
        The rows of one macrobatch, to be closed at its end; None where whole rows are kept.
    """
    if settings.split is not None:
        return SplitRows(splitter, parameters)
    return GhostRows(splitter, parameters) if settings.memory == GHOST else None
