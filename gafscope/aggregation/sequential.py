"""Rules that visit micro-gradients in order and fold the agreeing ones into a running vector.

One algorithm serves both ways of running them: on a Gramian (`decide`), and streaming, where
only the running vector and the newest gradient exist (`Visitor`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import numpy as np
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
    def fold(self) -> Fold | None:
        """How the rule runs; None while its settings need all gradients before the first visit."""
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
        # Arrays, since setting one number in a tensor costs as much as all the rest of a visit.
        self._weights = np.zeros(k)
        self._accepted = np.zeros(k, dtype=bool)
        self._distances = np.full(k, math.nan)
        self._finite = np.zeros(k, dtype=bool)

    def visit(
        self, square: float, dot: float, index: int | None = None
    ) -> tuple[float, float] | None:
        """Decide on the next gradient g.

        Args:
            square: <g, g>.
            dot: <g, s> with the running vector s; anything while s is empty.
            index: Which of the k gradients it is; None counts the visits.

        Returns:
            Factors (keep, add) when g is accepted, `s = keep * s + add * g`; None when not.
        """
        i = self._visits if index is None else index
        self._visits += 1
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
        self._weights *= keep
        self._weights[i] = add
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
        weights = self._weights / self.divisor if step else np.zeros_like(self._weights)
        return Decision(
            weights=torch.from_numpy(weights),
            accepted=torch.from_numpy(self._accepted & step),
            step=step,
            distances=torch.from_numpy(self._distances.copy()),
            finite=torch.from_numpy(self._finite.copy()),
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
    return visit_all(fold, products_to_visit(fold, gramian, rule), range(gramian.k))


def products_to_visit(fold: Fold, gramian: Gramian, rule: str) -> np.ndarray:
    """Give the inner products that `visit_all` takes.

    Args:
        fold: How the rule runs.
        gramian: Inner products of the k micro-gradients.
        rule: The rule's name, for messages.

    Returns:
        (k, k) float64, zeros beside the diagonal where a gradient is not finite: a dropped row
        has weight 0 but may hold NaN, and 0 * nan is nan.

    Raises:
        UserError: If the rule compares gradients and there is only one.
    """
    if gramian.k < fold.minimum:
        raise UserError(
            f"{rule} needs at least 2 micro-gradients to compare, but there is k = {gramian.k}; "
            "use microbatches=2 or more, or Mean for plain training."
        )
    matrix = gramian.matrix.cpu()
    finite = finite_rows(matrix)
    products = torch.where(finite[:, None] & finite[None, :], matrix, 0.0)
    products.diagonal().copy_(matrix.diagonal())
    return products.numpy()


def visit_all(fold: Fold, products_kk: np.ndarray, order: Sequence[int]) -> Decision:
    """Visit micro-gradients in any order.

    Args:
        fold: How the rule runs.
        products_kk: Inner products, from `products_to_visit`.
        order: Each of the k indices once.

    Returns:
        The decision, by index.
    """
    visitor = Visitor(fold, len(products_kk))
    dots = np.zeros(len(products_kk))  # of each gradient with the running vector
    squares = products_kk.diagonal().tolist()
    for i in order:
        factors = visitor.visit(squares[i], float(dots[i]), i)
        if factors is not None:
            keep, add = factors
            # Sums that overflow end as a distance of NaN, which no threshold accepts.
            with np.errstate(over="ignore", invalid="ignore"):
                dots = keep * dots + add * products_kk[i]
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
