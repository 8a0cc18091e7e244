"""What one rank knows of the others' progress, and what follows from it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar, final


@final
@dataclass
class _Rank:
    """What is known of another rank; times are this process's own clock."""

    beat: str = ""
    arrivals: int = 0
    step: int = -1
    heard: float = 0.0
    moved: float = 0.0
    done: bool = False


@final
class Board:
    """Notes when each rank was last heard of and when it last got further.

    Args:
        rank: The own rank.
        ranks: Their number.
    """

    DONE: ClassVar[str] = "done"

    def __init__(self, rank: int, ranks: int):
        self._rank = rank
        self._begun = time.monotonic()
        self._known = {r: _Rank() for r in range(ranks) if r != rank}
        self._own = _Rank()
        self._beats = 0
        self.forgive()

    @property
    def others(self) -> list[int]:
        """The other ranks."""
        return list(self._known)

    def arrive(self, step: int) -> None:
        """Note that the own rank is at the collectives of a step."""
        self._own.step, self._own.moved = step, time.monotonic()
        self._own.arrivals += 1

    def own(self) -> str:
        """Give the word that the others are to `note`; each one differs from the one before."""
        self._beats += 1
        return f"{self._beats} {self._own.arrivals} {self._own.step}"

    def note(self, rank: int, word: str) -> None:
        """Note another rank's word.

        Args:
            rank: The rank.
            word: What its `own` gave, or `DONE`.
        """
        known, now = self._known[rank], time.monotonic()
        if word == known.beat:
            return
        known.beat, known.heard = word, now
        if word == self.DONE:
            known.done = True
            return
        _, arrivals, step = map(int, word.split())
        if arrivals != known.arrivals:
            known.arrivals, known.step, known.moved = arrivals, step, now

    def seen(self, rank: int) -> bool:
        """Tell whether a rank was ever heard of."""
        return bool(self._known[rank].beat)

    def forgive(self) -> None:
        """Count all waiting from now on."""
        for known in (self._own, *self._known.values()):
            known.heard = known.moved = time.monotonic()

    def silent(self, seconds: float) -> list[tuple[int, int]]:
        """Give the ranks that were not heard of for so long, with their last steps."""
        now = time.monotonic()
        return [
            (rank, max(known.step, self._passed()))
            for rank, known in self._known.items()
            if not known.done and now - known.heard > seconds
        ]

    def _passed(self) -> int:
        """Give the last step that all have made: nobody gets beyond the next one alone."""
        return max(known.step for known in (self._own, *self._known.values())) - 1

    def lowest_alive(self, seconds: float, start: float) -> bool:
        """Tell whether no lower rank is alive.

        Args:
            seconds: A rank that was not heard of for so long is not.
            start: Seconds in which a rank may begin.
        """
        now = time.monotonic()
        starting = now - self._begun < start
        return not any(
            rank < self._rank
            and not known.done
            and (now - known.heard <= seconds if known.beat else starting)
            for rank, known in self._known.items()
        )

    def verdict(self, timeout: float) -> str | None:
        """Say which rank holds up the others for too long, if one does.

        Args:
            timeout: Seconds that are too long.
        """
        now = time.monotonic()
        if late := self.silent(timeout):
            rank, step = late[0]
            if not self.seen(rank):
                return f"Rank {rank} has not appeared within {timeout:g} s. {_REMEDY}"
            return f"Rank {rank} has not answered for {timeout:g} s; {_last(step)}. {_REMEDY}"
        everyone = [self._own, *self._known.values()]
        furthest = max(known.arrivals for known in everyone)
        # Since then somebody waits.
        since = min(known.moved for known in everyone if known.arrivals == furthest)
        for rank, known in self._known.items():
            if known.arrivals < furthest and not known.done and now - since > timeout:
                last = _last(max(known.step, self._passed()))
                return f"Rank {rank} has held up the others for {timeout:g} s; {last}. {_REMEDY}"
        return None


_REMEDY = (
    "It is stopped, hangs or is too slow: look at its process and its machine, or raise "
    "--rank-timeout. Every rank ends; the same command goes on from the last checkpoint."
)


def _last(step: int) -> str:
    return f"its last step was {step}" if step >= 0 else "it had not begun a step"
