"""Two ways in which a run gets nowhere: nothing is ever accepted, or nothing is finite."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, final

import numpy as np

from gafscope.aggregation import Decision
from gafscope.errors import UserError

STALLED_AFTER = 200
DIVERGED_AFTER = 10
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@final
class Watchdog:
    """Counts rejected and non-finite macrobatches in a row."""

    def __init__(self):
        self._distances: deque[list[float]] = deque(maxlen=STALLED_AFTER)
        self._rejected = 0
        self._not_finite = 0
        self._ever_finite = False
        self._told = False

    def see(self, step: int, decision: Decision) -> str | None:
        """Take note of a decision.

        Args:
            step: The step, from 0.
            decision: What the rule decided there.

        Returns:
            Once a run, after 200 rejections in a row: what to tell the user.

        Raises:
            UserError: After 10 macrobatches in a row without one finite micro-gradient.
        """
        self._check_finite(step, decision)
        self._distances.append(decision.distances.tolist())
        self._rejected = 0 if decision.step else self._rejected + 1
        if self._rejected < STALLED_AFTER or self._told:
            return None
        self._told = True
        return self._advice(step)

    def _check_finite(self, step: int, decision: Decision) -> None:
        finite = bool(decision.finite.any())
        self._ever_finite = self._ever_finite or finite
        self._not_finite = 0 if finite else self._not_finite + 1
        if self._not_finite < DIVERGED_AFTER:
            return
        since = step - DIVERGED_AFTER + 1
        if not self._ever_finite:
            raise UserError(
                "Every loss or gradient has been NaN or infinite since the first step, so nothing "
                "can be learned. Look for NaN in the inputs, a loss that takes the logarithm of "
                "zero, or weights that are NaN already."
            )
        raise UserError(
            f"The run has diverged: since step {since} every loss or gradient is NaN or infinite. "
            "Use a smaller learning rate, gradient clipping (clip_norm), or precision 'fp32'."
        )

    def _advice(self, step: int) -> str:
        # Macrobatches may differ in size, sample by sample.
        every = [np.asarray(distances, dtype=float) for distances in self._distances]
        steps = [distances[np.isfinite(distances)] for distances in every]
        seen = np.concatenate(steps)
        start = f"The last {STALLED_AFTER} macrobatches (to step {step}) were all rejected"
        if not seen.size:
            return f"{start}; no distance between two of their micro-gradients is known."
        # A macrobatch is accepted as soon as one of its micro-gradients is. The last digit is
        # rounded up, or the tau that is named would accept fewer.
        nearest = [distances.min() for distances in steps if distances.size]
        tau = math.ceil(np.quantile(nearest, 0.1) * 1e6) / 1e6
        quantiles = ", ".join(f"{q:.0%} {np.quantile(seen, q):.4f}" for q in _QUANTILES)
        return (
            f"{start}. Distances seen: {quantiles}. tau = {tau:.6f} would have accepted a tenth "
            "of them. The model does not change while every step is skipped: raise tau, or "
            "average for the first updates (warmup_updates)."
        )

    def state_dict(self) -> dict[str, Any]:
        """Give the counters for a checkpoint."""
        return {
            "distances": list(self._distances),
            "rejected": self._rejected,
            "not_finite": self._not_finite,
            "ever_finite": self._ever_finite,
            "told": self._told,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters over from a checkpoint.

        Args:
            state: What `state_dict` gave.
        """
        self._distances = deque(state["distances"], maxlen=STALLED_AFTER)
        self._rejected = state["rejected"]
        self._not_finite = state["not_finite"]
        self._ever_finite = state["ever_finite"]
        self._told = state["told"]
