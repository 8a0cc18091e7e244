# pyright: reportPrivateImportUsage=false
"""Filters that act on `.grad` while a loop accumulates.

On the loop's own scale: after n of its backwards `.grad` holds `n sum_i w_i row_i`, which for
equal weights is the sum that the loop would have, whether or not it divides its loss by k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, final

import torch
from torch import nn

from gafscope import geometry
from gafscope.aggregation import (
    Decision,
    Fold,
    Observing,
    RowRule,
    Rule,
    Visitor,
    aggregate,
    check_decision,
)
from gafscope.errors import UserError
from gafscope.gradients.running import RunningVector
from gafscope.instruments.capture import Row
from gafscope.instruments.memory import Rows

_ROOM = 8


class Filter(Protocol):
    """What becomes of the rows of one macrobatch."""

    scalars: Mapping[str, float]

    def visit(self, row: Row, scale: float, keep_infinite: bool) -> bool:
        """See the next row, which was already added to `.grad`.

        Args:
            row: The row; it may be kept and changed unless it is kept elsewhere as well.
            scale: What the loss was multiplied by (a GradScaler's factor).
            keep_infinite: Leave `.grad` alone once a row is not finite, so that a GradScaler
                sees it.

        Returns:
            Whether the row is finite.
        """
        ...

    def finish(self) -> tuple[Decision, float]:
        """Give the decision on all rows, and the norm of the update on the rows' scale."""
        ...


@final
class Streaming:
    """A sequential rule: only the running vector and the newest row exist.

    Args:
        fold: How the rule runs.
        rule: The rule, which may learn from its decision.
        parameters: The parameters whose `.grad` is written.
        products: Multiplies rows.
        shared: The rows are kept elsewhere as well, so none may be changed.
    """

    def __init__(
        self,
        fold: Fold,
        rule: Rule,
        parameters: Sequence[nn.Parameter],
        products: geometry.StreamingProducts,
        shared: bool,
    ):
        self.scalars: Mapping[str, float] = {}
        self._fold, self._rule, self._parameters = fold, rule, parameters
        self._products, self._shared = products, shared
        self._visits: list[tuple[float, float]] = []
        self._visitor = Visitor(fold, _ROOM)
        self._room = _ROOM
        self._running = RunningVector()
        # Whether what autograd has added up in `.grad` is the filtered value already.
        self._own = fold.keep == fold.add == 1 and fold.divide
        self._left_alone = False

    def visit(self, row: Row, scale: float, keep_infinite: bool) -> bool:
        """See the next row; `Filter` has the arguments."""
        square, dot = self._products(row, self._running.tensors)
        if len(self._visits) == self._room:
            self._room *= 2
            self._visitor = self._replayed(self._room)
        self._visits.append((square, dot))
        factors = self._visitor.visit(square, dot)
        if factors:
            if self._shared and not self._running.tensors:
                row = [None if part is None else part.clone() for part in row]
            self._running.fold(row, *factors)
        self._left_alone |= keep_infinite and not math.isfinite(square)
        self._own = self._own and factors is not None
        if not self._own and not self._left_alone:
            n = len(self._visits)
            write(self._parameters, self._running.tensors, n, self._visitor.divisor)
        return math.isfinite(square)

    def finish(self) -> tuple[Decision, float]:
        """Give the decision on all rows, and the norm of the update."""
        visitor = self._replayed(len(self._visits))
        decision = visitor.decision()
        if isinstance(self._rule, Observing):
            self._rule.observe(decision)
        return decision, len(self._visits) * visitor.norm

    def _replayed(self, k: int) -> Visitor:
        # How many rows there will be is known at the end only, and a visitor wants to know.
        visitor = Visitor(self._fold, k)
        for square, dot in self._visits:
            visitor.visit(square, dot)
        return visitor


@final
class Holding:
    """Any other rule: it decides once, on all k rows.

    Args:
        rule: The rule.
        k: The number of rows.
        parameters: The parameters by name.
        rows: The rows, kept by the caller, who adds each one before it is visited.
    """

    def __init__(self, rule: Rule, k: int, parameters: Mapping[str, nn.Parameter], rows: Rows):
        self.scalars: Mapping[str, float] = {}
        self._rule, self._k, self._named, self._rows = rule, k, parameters, rows
        self._parameters = list(parameters.values())
        self._decision: Decision | None = None
        self._norm = math.nan

    def visit(self, row: Row, scale: float, keep_infinite: bool) -> bool:
        """See the next row; `Filter` has the arguments."""
        if len(self._rows) > self._k:
            raise self._miscounted(f"now makes backward {len(self._rows)} before its step")
        if len(self._rows) == self._k:
            self._decide(scale, keep_infinite)
        return all(part is None or bool(part.isfinite().all()) for part in row)

    def finish(self) -> tuple[Decision, float]:
        """Give the decision on all rows, and the norm of the update."""
        if self._decision is None:
            raise self._miscounted(f"steps after {len(self._rows)}")
        return self._decision, self._norm

    def _decide(self, scale: float, keep_infinite: bool) -> None:
        gramian = self._rows.gramian(self._named, True, scale)
        if isinstance(self._rule, RowRule):
            rows = self._rows.stacked(self._named, scale)
            result = aggregate(self._rule, rows, gramian)
            self._decision, self.scalars = result.decision, result.scalars
            update = [result.update.get(name) for name in self._named]
            times = self._k * scale
        else:
            self._decision = self._rule(gramian)
            check_decision(self._decision, gramian.matrix, self._rule)
            update, times = self._combine(self._decision), self._k
        square, _ = geometry.StreamingProducts()(update, [])
        self._norm = times * math.sqrt(square)
        infinite = not bool(self._decision.finite.all())
        # A GradScaler wants something to look at, also where the step will be rejected.
        if self._decision.step and not (keep_infinite and infinite):
            write(self._parameters, update, times, 1)

    def _combine(self, decision: Decision) -> Row:
        # In the order and with the factors of the trainer, to the last bit.
        running = RunningVector()
        for i in decision.accepted.nonzero().flatten().tolist():
            row = self._rows.row(i, self._parameters)
            if not running.tensors:
                row = [None if part is None else part.clone() for part in row]
            running.fold(row, 1.0, float(decision.weights[i]))
        return running.tensors or [None] * len(self._parameters)

    def _miscounted(self, found: str) -> UserError:
        name = type(self._rule).__name__
        return UserError(
            f"{name} decides on all microbatches at once and was told microbatches={self._k}, but "
            f"the loop {found}; make every step of the same number of backwards (drop_last=True), "
            "or use a rule that visits them one by one, such as GAF(tau=0.97)."
        )


def write(
    parameters: Sequence[nn.Parameter],
    tensors: Sequence[torch.Tensor | None],
    times: float,
    over: float,
) -> None:
    """Put `times * tensors / over` into `.grad`, in place where there is one.

    Args:
        parameters: The parameters.
        tensors: One a parameter, None for no gradient; empty for none at all.
        times: Factor, taken first: exact where it is a power of two.
        over: Divisor.
    """
    values = tensors or [None] * len(parameters)
    written = []
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            if value is None:
                parameter.grad = None
                continue
            if parameter.grad is None:
                parameter.grad = value.clone()
            else:
                parameter.grad.copy_(value)
            written.append(parameter.grad)
        if written and times != over:
            torch._foreach_mul_(written, float(times))
            if over != 1:
                torch._foreach_div_(written, float(over))
