"""When to measure: small objects that say at which steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol, final, runtime_checkable

from gafscope.errors import UserError


@runtime_checkable
class Schedule(Protocol):
    """Says at which steps, counted from 0, a loop is measured."""

    def due(self, step: int, /) -> bool:
        """Tell whether this step is measured."""
        ...


@final
@dataclass(frozen=True)
class Every:
    """Measure every n-th step: 0, n, 2n ...

    Args:
        n: Steps from one measurement to the next.

    Raises:
        UserError: If n is no whole number of at least 1.

    Example:
        >>> [step for step in range(7) if Every(3).due(step)]
        [0, 3, 6]
    """

    n: int

    def __post_init__(self):
        _check_whole("every", self.n, 1)

    def due(self, step: int, /) -> bool:
        """Tell whether this step is measured."""
        return step % self.n == 0


@final
@dataclass(frozen=True)
class AtSteps:
    """Measure at given steps.

    Args:
        steps: The steps, in any order.

    Raises:
        UserError: If there is none, or one is no whole number of at least 0.
    """

    steps: Iterable[int]

    def __post_init__(self):
        steps = frozenset(self.steps)
        for step in steps:
            _check_whole("A step to measure at", step, 0)
        if not steps:
            raise UserError("AtSteps needs at least one step to measure at, but was given none.")
        object.__setattr__(self, "steps", frozenset(map(int, steps)))

    def due(self, step: int, /) -> bool:
        """Tell whether this step is measured."""
        assert isinstance(self.steps, frozenset)
        return step in self.steps

    def __repr__(self) -> str:
        return f"AtSteps({sorted(self.steps)})"


def linear(first: int, last: int, count: int) -> AtSteps:
    """Measure at steps that are evenly spaced, the first and the last included.

    Args:
        first: The first step, from 0.
        last: The last step.
        count: How many, at least 2. Steps that round to the same one are measured once.

    Raises:
        UserError: If the range is empty or the count too small.

    Example:
        >>> linear(0, 100, 5)
        AtSteps([0, 25, 50, 75, 100])
    """
    _check_range(first, last, count, 0)
    return AtSteps(round(first + (last - first) * i / (count - 1)) for i in range(count))


def logarithmic(first: int, last: int, count: int) -> AtSteps:
    """Measure at steps in constant ratios, densely where training changes fastest.

    Args:
        first: The first step, at least 1 (step 0 has no logarithm; `AtSteps` takes it).
        last: The last step.
        count: How many, at least 2. Steps that round to the same one are measured once.

    Raises:
        UserError: If the range is empty or begins before step 1, or the count is too small.

    Example:
        >>> logarithmic(1, 1000, 4)
        AtSteps([1, 10, 100, 1000])
    """
    _check_range(first, last, count, 1)
    return AtSteps(round(first * (last / first) ** (i / (count - 1))) for i in range(count))


def as_schedule(every: int | Schedule) -> Schedule:
    """Take a number of steps for `Every`.

    Args:
        every: The number, or a schedule, which is handed through.

    Raises:
        UserError: If it is neither.
    """
    return Every(every) if isinstance(every, int) else _checked(every)


def _checked(schedule: Schedule) -> Schedule:
    if not isinstance(schedule, Schedule) or isinstance(schedule, type):
        raise UserError(
            "every must be a number of steps, or a schedule such as Every(10) or AtSteps([0, 9]), "
            f"but is {schedule!r}."
        )
    return schedule


def _check_range(first: int, last: int, count: int, lowest: int) -> None:
    _check_whole("first", first, lowest)
    _check_whole("last", last, int(first) + 1)
    _check_whole("count", count, 2)


def _check_whole(name: str, value: object, lowest: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < lowest:
        raise UserError(f"{name} must be a whole number of at least {lowest}, but is {value!r}.")
