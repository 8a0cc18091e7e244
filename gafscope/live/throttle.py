"""How often a live view may draw."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final


@final
class Throttle:
    """Keeps what a view spends within a share of the time that passes.

    Before a drawing it waits until the time since the last one, times the share, pays for what
    was spent then; so the slower a drawing is, the rarer it becomes.

    Args:
        share: The largest share of the time, in (0, 1).
        shortest: Seconds between two drawings at least.
        clock: Gives the time in seconds.
    """

    def __init__(
        self, share: float, shortest: float, clock: Callable[[], float] = time.perf_counter
    ):
        self._share, self._shortest, self._clock = share, shortest, clock
        self._spent = 0.0
        self._since = clock()

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Count what happens inside as spent."""
        began = self._clock()
        try:
            yield
        finally:
            self._spent += self._clock() - began

    @property
    def due(self) -> bool:
        """Whether the next drawing may begin."""
        passed = self._clock() - self._since
        return passed >= max(self._shortest, self._spent / self._share)

    @contextmanager
    def drawing(self, times: float = 1.0) -> Iterator[None]:
        """Count a drawing, from which the next wait begins.

        Args:
            times: How many times as much the next one will cost.
        """
        # What came between two drawings is paid for by now; this one is not.
        self._spent = 0.0
        with self.spend():
            yield
        self._spent *= times
        self._since = self._clock()
