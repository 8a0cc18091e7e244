"""What an analysis is, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of an analysis.

    Attributes:
        table: One row a condition, with intervals over the seeds: what is printed and kept.
        curves: One row a condition, seed and step: what the figures are drawn from.
        verdict: What was found, in plain sentences.
        folder: Where the runs are and the table and the figures go.
    """

    table: pd.DataFrame
    curves: pd.DataFrame
    verdict: str
    folder: Path


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
        run: Settings -> result; goes on where an interrupted run of it stopped.
    """

    name: str
    question: str
    presets: Mapping[str, Any]
    minutes: Mapping[str, str]
    run: Callable[[Any], Result]
