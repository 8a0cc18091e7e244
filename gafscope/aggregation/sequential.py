"""Rules that visit micro-gradients in order and fold the agreeing ones into a running vector.

One algorithm serves both ways of running them: on a Gramian (`decide`), and streaming, where
only the running vector and the newest gradient exist (`Visitor`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch

from gafscope.aggregation.decision import Decision
from gafscope.errors import UserError
from gafscope.geometry import finite_rows, pair_distance
from gafscope.gradients import Gramian

# A running vector shorter than this share of what went into it has cancelled to rounding noise.
_CANCELLED = 1e-13


@final
@dataclass(frozen=True)
class Fold:
    """How a sequential rule runs.

    Attributes:
        tau: Largest accepted cosine distance to the running vector.
        keep: An accepted gradient g turns the running vector s into `keep * s + add * g`.
        add: See `keep`.
        divide: The update is `s / accepted` (else `s` itself).
        minimum: Skip the update when fewer are accepted.
    """

    tau: float
    keep: float
    add: float
    divide: bool
    minimum: int


@runtime_checkable
class Sequential(Protocol):
    """A weighting that can also stream: its whole behaviour is in its `fold`."""

    @property
    def fold(self) -> Fold:
        """How the rule runs."""
        ...

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on a Gramian."""
        ...


@final
class Visitor:
    """The state of one macrobatch while its k micro-gradients are visited in order.

    Non-finite gradients are never accepted. A zero gradient is at distance 1. The first finite
    gradient that is not zero starts the running vector; there is no distance at that visit.

    Args:
        fold: How the rule runs.
        k: Number of micro-gradients.
    """

    def __init__(self, fold: Fold, k: int):
        self._fold = fold
        self._square = 0.0  # <s, s>
        self._input = 0.0  # what <s, s> would be if all that went into s were orthogonal
        self._started = False
        self._visits = 0
        self._count = 0
        self.weights = torch.zeros(k, dtype=torch.float64)
        self._accepted = torch.zeros(k, dtype=torch.bool)
        self._distances = torch.full((k,), math.nan, dtype=torch.float64)
        self._finite = torch.zeros(k, dtype=torch.bool)

    def visit(self, square: float, dot: float) -> tuple[float, float] | None:
        """Decide on the next gradient g.

        Args:
            square: <g, g>.
            dot: <g, s> with the running vector s; anything while s is empty.

        Returns:
            Factors (keep, add) when g is accepted, `s = keep * s + add * g`; None when not.
        """
        i, self._visits = self._visits, self._visits + 1
        if not math.isfinite(square):
            return None
        self._finite[i] = True
        if self._started or square == 0:
            cancelled = self._square <= _CANCELLED * self._input
            distance = pair_distance(dot, square, 0.0 if cancelled else self._square)
            self._distances[i] = distance
            if not distance <= self._fold.tau:
                return None
        keep, add = (self._fold.keep, self._fold.add) if self._count else (0.0, 1.0)
        dot = dot if self._started else 0.0
        self._square = keep * keep * self._square + 2 * keep * add * dot + add * add * square
        self._input = keep * keep * self._input + add * add * square
        self._started = self._started or square > 0
        self._count += 1
        self._accepted[i] = True
        self.weights *= keep
        self.weights[i] = add
        return keep, add

    @property
    def divisor(self) -> int:
        """The update is the running vector divided by this."""
        return max(self._count, 1) if self._fold.divide else 1

    @property
    def norm(self) -> float:
        """Norm of the update, |s| / divisor."""
        return math.sqrt(max(self._square, 0.0)) / self.divisor

    def decision(self) -> Decision:
        """Give the decision after the last visit."""
        step = self._count >= self._fold.minimum
        return Decision(
            weights=self.weights / self.divisor if step else torch.zeros_like(self.weights),
            accepted=self._accepted & step,
            step=step,
            distances=self._distances,
            finite=self._finite,
        )


def decide(fold: Fold, gramian: Gramian, rule: str) -> Decision:
    """Run a sequential rule on a Gramian.

    Args:
        fold: How the rule runs.
        gramian: Inner products of the k micro-gradients, in visiting order.
        rule: The rule's name, for messages.

    Returns:
        The decision; in O(k^2) additions.

    Raises:
        UserError: If the rule compares gradients and there is only one.
    """
    if gramian.k < fold.minimum:
        raise UserError(
            f"{rule} needs at least 2 micro-gradients to compare, but there is k = {gramian.k}; "
            "use microbatches=2 or more, or Mean for plain training."
        )
    visitor = Visitor(fold, gramian.k)
    # A dropped row has weight 0 but may hold NaN, and 0 * nan is nan.
    matrix = gramian.matrix.cpu()
    products = torch.where(finite_rows(matrix), matrix, 0.0)
    for i, square in enumerate(matrix.diagonal().tolist()):
        visitor.visit(square, float(products[i] @ visitor.weights))
    return visitor.decision()


def check_tau(tau: float) -> None:
    """Refuse a threshold that no cosine distance can have.

    Args:
        tau: The threshold.

    Raises:
        UserError: If it is outside [0, 2].
    """
    if not 0 <= tau <= 2:
        raise UserError(
            f"tau is a cosine distance and must lie in [0, 2] (0 aligned, 1 orthogonal, 2 "
            f"opposed), but it is {tau}; the paper uses 0.95 to 1.05."
        )
