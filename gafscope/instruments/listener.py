"""The seam for whatever follows a loop while it runs: loggers, live views, progress lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from gafscope.gradients import Gramian


@final
@dataclass(frozen=True, eq=False)
class Record:
    """What one step of a watched loop gave.

    Attributes:
        step: The step, from 0.
        row: The row of scalars as it is written to the run's folder, column name -> value.
        gramian: Inner products of the step's micro-gradients, on the CPU; None at the steps of
            filter mode that the schedule leaves out.
    """

    step: int
    row: Mapping[str, Any]
    gramian: Gramian | None


Listener: TypeAlias = Callable[[Record], None]
"""Called once a recorded step, after the optimizer's step and in the loop's own thread. Whatever
it raises reaches the loop. A listener that is a context manager as well is entered when the watch
starts and left when it stops."""
