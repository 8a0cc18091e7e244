"""Running the trials of an analysis one after the other, each in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from gafscope.records import Run
from gafscope.records.acceptance import accepted_fraction
from gafscope.trainer import TrainSettings, train

if TYPE_CHECKING:
    import pandas as pd

SMOOTH = 100
_POINTS = 400
FRESH = 1000
"""A control must see fresh microbatches, drawn with the trial's seed plus this: the same ones would
step on the same samples."""


@final
@dataclass(frozen=True)
class Trial:
    """One training run of an analysis.

    Attributes:
        data: What it trains on, for people.
        rule: What it trains with, for people.
        seed: Its seed.
        settings: The settings, but for the folder.
    """

    data: str
    rule: str
    seed: int
    settings: TrainSettings

    def folder(self, root: Path) -> Path:
        """Give the trial's folder."""
        words = f"{self.data} {self.rule} seed{self.seed}".lower()
        return root / "-".join(re.findall(r"[a-z0-9.]+", words))


def data_name(settings: TrainSettings) -> str:
    """Say what a run trains on, for people.

    Args:
        settings: Its settings.
    """
    noise = settings.label_noise
    return f"{settings.data}, {noise:.0%} label noise" if noise else settings.data


def trials_of(data: str, rules: Mapping[str, TrainSettings], seeds: int) -> list[Trial]:
    """Make a trial for each rule and seed, the seeds of a rule side by side.

    Args:
        data: What they train on, for people.
        rules: The rule's name, for people -> its settings, with the first seed.
        seeds: How many seeds, counted up.
    """
    return [
        Trial(data, rule, seed, replace(settings, seed=seed))
        for rule, settings in rules.items()
        for seed in range(settings.seed, settings.seed + seeds)
    ]


def plan_of(trials: Sequence[Trial]) -> list[TrainSettings]:
    """Give the settings of trials, for an analysis that tells its plan.

    Args:
        trials: The trials.
    """
    return [trial.settings for trial in trials]


def yoked_control(trial: Trial, root: Path, name: str) -> Trial:
    """Make the control that averages fresh microbatches and steps exactly when a trial stepped.

    Args:
        trial: The trial; it must have run before the control does.
        root: The folder that holds the trials'.
        name: The control's name, for people.
    """
    settings = replace(
        trial.settings,
        rule="mean",
        tau=None,
        rule_options=None,
        sampling_seed=trial.seed + FRESH,
        yoked_to=str(trial.folder(root)),
    )
    return Trial(trial.data, name, trial.seed, settings)


def run_trials(trials: Sequence[Trial], root: Path) -> list[Run]:
    """Train each trial, or take the run that is in its folder already.

    Args:
        trials: The trials. One may be yoked to the folder of an earlier one.
        root: The folder that holds theirs.

    Returns:
        Their runs, in the same order.
    """
    runs = []
    for number, trial in enumerate(trials, 1):
        settings = replace(trial.settings, run_dir=str(trial.folder(root)))
        name = f"[{number}/{len(trials)}] {trial.data}, {trial.rule}, seed {trial.seed}"
        runs.append(train(settings, name=name))
    return runs


def curves_of(trials: Sequence[Trial], runs: Sequence[Run], points: int = _POINTS) -> pd.DataFrame:
    """Lay the runs' curves end to end.

    Args:
        trials: The trials.
        runs: Their runs.
        points: About how many steps are kept of a longer run.

    Returns:
        One row a trial and step: `data`, `rule`, `seed`, `step`, `train_accuracy`,
        `rolling_distance` and `rolling_accepted` (rolling means over 100 steps), `distance`,
        `accepted` (of 1), `updates` so far, `tau` where the rule has one, and
        `validation_accuracy` at the steps that have it. Of a long run evenly spaced steps, and
        those that were validated.
    """
    import pandas as pd

    parts = []
    for trial, run in zip(trials, runs, strict=True):
        scalars = run.scalars
        accepted = accepted_fraction(scalars, run.config)
        part = pd.DataFrame(
            {
                "data": trial.data,
                "rule": trial.rule,
                "seed": trial.seed,
                "step": scalars["step"],
                "train_accuracy": scalars["accuracy"].rolling(SMOOTH, min_periods=1).mean(),
                "distance": scalars["distance_mean"],
                "rolling_distance": scalars["distance_mean"].rolling(SMOOTH, min_periods=1).mean(),
                "accepted": accepted,
                "rolling_accepted": accepted.rolling(SMOOTH, min_periods=1).mean(),
                "updates": scalars["stepped"].cumsum(),
                "tau": _taus(run),
                "validation_accuracy": scalars.get("validation_accuracy"),
            }
        )
        # More points than the eye can tell apart only make the file large.
        drawn = part["step"] % max(1, len(part) // points) == 0
        drawn |= part["validation_accuracy"].notna()
        parts.append(part[drawn])
    return pd.concat(parts, ignore_index=True)


def _taus(run: Run) -> Any:
    """Give tau step by step where the rule moves it, or the one it has."""
    if "tau" in run.scalars:
        return run.scalars["tau"]
    return float("nan") if run.config["tau"] is None else run.config["tau"]


def _last_tau(run: Run) -> float:
    taus = _taus(run)
    return taus if isinstance(taus, float) else taus.iloc[-1]


def ends_of(trials: Sequence[Trial], runs: Sequence[Run]) -> pd.DataFrame:
    """Collect the numbers at the end of each run.

    Args:
        trials: The trials.
        runs: Their runs.

    Returns:
        One row a trial: `data`, `rule`, `seed`, `train_accuracy` (mean over the last 100 steps),
        `test_accuracy`, `best_test_accuracy` (at the weights of the best validation),
        `validation_accuracy`, `steps`, `updates`, `accepted`, `distance` and `tau` at the end;
        shares of 1 but steps and updates.
    """
    import pandas as pd

    rows = [
        {
            "data": trial.data,
            "rule": trial.rule,
            "seed": trial.seed,
            "train_accuracy": run.scalars["accuracy"].tail(SMOOTH).mean(),
            "test_accuracy": run.summary["test_accuracy"],
            "best_test_accuracy": run.summary.get("best_test_accuracy"),
            "validation_accuracy": run.summary.get("validation_accuracy"),
            "steps": run.summary["steps"],
            "updates": run.summary["updates"],
            "accepted": accepted_fraction(run.scalars, run.config).mean(),
            "distance": run.scalars["distance_mean"].tail(SMOOTH).mean(),
            "tau": _last_tau(run),
        }
        for trial, run in zip(trials, runs, strict=True)
    ]
    return pd.DataFrame(rows)
