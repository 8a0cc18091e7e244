"""What an analysis is, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    import pandas as pd

    from gafscope.trainer import TrainSettings


@final
@dataclass(frozen=True, eq=False)
class Measured:
    """What an analysis has measured; everything that it says follows from it.

    Attributes:
        runs: One row a run or measurement.
        curves: One row a condition, seed and step: what figures over steps are drawn from.
        folder: Where the runs are and the table and the figures go.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    folder: Path


@final
@dataclass(frozen=True, eq=False)
class Conclusion:
    """What follows from the measurements.

    Attributes:
        table: One row a condition, with intervals over the seeds: what is printed and kept. Its
            column `data` divides it.
        verdict: What was found, in plain sentences.
        shown: Columns of a wide table that are printed; all when empty. The file has them all.
    """

    table: pd.DataFrame
    verdict: str
    shown: Sequence[str] = ()


@final
@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of an analysis: what was measured and what follows.

    Attributes:
        table: As in `Conclusion`.
        curves: As in `Measured`.
        verdict: As in `Conclusion`.
        folder: As in `Measured`.
        shown: As in `Conclusion`.
    """

    table: pd.DataFrame
    curves: pd.DataFrame
    verdict: str
    folder: Path
    shown: Sequence[str] = ()


@final
@dataclass(frozen=True, eq=False)
class Analysis:
    """One question to the data.

    Attributes:
        name: Its name on the command line.
        question: What it answers, in one line.
        presets: Preset name -> settings, "quick" first. Settings hold the training settings in
            their field `train`.
        minutes: About how long each preset takes, in words.
        measure: Settings -> measurements; goes on where an interrupted run of it stopped.
        conclude: Settings, runs and curves -> table and verdict. It computes on what it is given
            alone, so that a kept table can be drawn again and checked.
        plan: Settings -> the trainings that `measure` will make, controls included.
    """

    name: str
    question: str
    presets: Mapping[str, Any]
    minutes: Mapping[str, str]
    measure: Callable[[Any], Measured]
    conclude: Callable[[Any, Any, Any], Conclusion]
    plan: Callable[[Any], Sequence[TrainSettings]]

    def run(self, settings: Any) -> Result:
        """Measure and conclude.

        Args:
            settings: Its settings.

        Returns:
            The outcome.
        """
        measured = self.measure(settings)
        conclusion = self.conclude(settings, measured.runs, measured.curves)
        return Result(
            conclusion.table,
            measured.curves,
            conclusion.verdict,
            measured.folder,
            conclusion.shown,
        )
