"""GAF with a threshold that keeps the accepted share where it is wanted."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.sequential import Fold, decide
from gafscope.errors import UserError
from gafscope.gradients import Gramian


@final
@dataclass(eq=False)
class AdaptiveGAF:
    """GAF whose tau is a running quantile of the distances that it meets.

    tau is the `target_acceptance` quantile of the distances at all visits of the last `window`
    decisions, accepted or not, so that this share of visits is accepted wherever the distances
    are: at a cold start near 1 as well. It cannot stall for ever: after `window` decisions without
    an acceptance tau is a quantile of just these decisions' distances, and the next one like them
    is accepted with the target's probability. Nothing is known before the first decision, which
    accepts everything (tau = 2); with few distances known the share is only roughly met.

    A visit is what GAF compares: a micro-gradient and the running sum. At k = 2 that is the one
    pair, and the accepted share of visits is the share of steps taken. With more, visits after the
    first acceptance compare with a sum, which is nearer; all visits count alike, and a step is
    taken when any one is accepted, so more steps are taken than the target says.

    It fixes how much is accepted, not whether what is accepted agrees better than chance; for
    that see `CalibratedGAF`.

    Args:
        target_acceptance: Share of visits to accept, in (0, 1).
        window: Decisions to remember; at least 10.

    Raises:
        UserError: If an argument is out of range, or (when called) there is only one
            micro-gradient.

    Example:
        >>> import torch
        >>> rule = AdaptiveGAF(target_acceptance=0.5)
        >>> for cosine in (0.1, 0.2, 0.3):
        ...     _ = rule(Gramian(torch.tensor([[1.0, cosine], [cosine, 1.0]])))
        >>> round(rule.fold.tau, 4)
        0.8
    """

    target_acceptance: float = 0.5
    window: int = 100
    _recent: deque[Tensor] = field(init=False, repr=False)
    _threshold: float = field(default=2.0, init=False, repr=False)
    _used: float = field(default=2.0, init=False, repr=False)

    def __post_init__(self):
        if not 0 < self.target_acceptance < 1:
            raise UserError(
                "target_acceptance is the share of visits to accept and must lie in (0, 1), but "
                f"is {self.target_acceptance}; use Mean to accept everything."
            )
        if self.window < 10:
            raise UserError(
                f"window counts the decisions that tau is a quantile of and must be at least 10, "
                f"but is {self.window}; 100 is usual."
            )
        self._recent = deque(maxlen=self.window)

    @property
    def fold(self) -> Fold:
        """GAF with the present threshold."""
        return Fold(tau=self._threshold, keep=1.0, add=1.0, divide=True, minimum=2)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients in their order, and learn from their distances.

        Args:
            gramian: Their inner products.

        Returns:
            The decision, with the distance to the running sum at each visit.
        """
        decision = decide(self.fold, gramian, "AdaptiveGAF")
        self.observe(decision)
        return decision

    def observe(self, decision: Decision, /) -> None:
        """Move the threshold, from the finite distances of a decision that was just taken."""
        self._used = self._threshold
        distances = decision.distances[torch.isfinite(decision.distances)]
        if len(distances):
            self._recent.append(distances)
            self._threshold = self._quantile()

    def scalars(self) -> Mapping[str, float]:
        """Give the threshold that the last decision was taken with."""
        return {"tau": self._used}

    def state_dict(self) -> dict[str, Any]:
        """Give the recent distances for a checkpoint."""
        return {"recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take the recent distances over from a checkpoint.

        Args:
            state: What `state_dict` gave.
        """
        self._recent = deque(state["recent"], maxlen=self.window)
        self._threshold = self._quantile() if self._recent else 2.0
        self._used = self._threshold

    def _quantile(self) -> float:
        # torch.quantile takes at most 16 million numbers, and single samples may come close.
        values = torch.cat(list(self._recent)).sort().values
        place = self.target_acceptance * (len(values) - 1)
        below = math.floor(place)
        above = min(below + 1, len(values) - 1)
        return float(torch.lerp(values[below], values[above], place - below))
