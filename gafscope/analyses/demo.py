"""GAF against averaging under label noise, with its control, in under a minute."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import pandas as pd
from tyro.conf import OmitArgPrefixes

from gafscope.analyses import white_noise
from gafscope.analyses.presets import noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.trials import (
    Trial,
    curves_of,
    ends_of,
    plan_of,
    run_trials,
    trials_of,
    yoked_control,
)
from gafscope.analyses.white_noise import WhiteNoiseSettings
from gafscope.sweep.intervals import over_seeds, paired_difference
from gafscope.trainer import TrainSettings

_COLUMNS = ("test_accuracy", "best_test_accuracy", "train_accuracy")
_MEANS = ("accepted", "updates")
_LABELS, _NOISE = "label noise", "white noise"


@final
@dataclass(frozen=True)
class DemoSettings:
    """Train on digits with wrong labels by averaging, by GAF and by GAF's yoked control.

    The control averages fresh microbatches and steps exactly when GAF stepped: it makes the same
    number of updates at the same times, but accepts whatever comes.
    """

    seeds: int = 3
    """Seeds of each rule, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=noisy_digits)
    """How to train."""


def measure(settings: DemoSettings) -> Measured:
    """Train, or go on with it.

    Args:
        settings: The settings.

    Returns:
        The runs of the three rules, and the pair on white noise.
    """
    root = _root(settings)
    trials = _trials(settings, root)
    runs = run_trials(trials, root)
    noise = white_noise.measure(_noise_pair(settings, root))
    ends = pd.concat(
        [
            ends_of(trials, runs).assign(part=_LABELS),
            noise.runs.assign(part=_NOISE),
        ],
        ignore_index=True,
    )
    curves = pd.concat([curves_of(trials, runs), noise.curves], ignore_index=True)
    return Measured(ends, curves, root)


def conclude(settings: DemoSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds and say what was found.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`.

    Returns:
        Test accuracy of the three rules, and train accuracy on white noise of two.
    """
    ends = runs[runs["part"] == _LABELS]
    own = over_seeds(ends, ("data", "rule"), _COLUMNS, _MEANS)
    noise = white_noise.conclude(
        _noise_pair(settings, _root(settings)), runs[runs["part"] == _NOISE], curves
    )
    table = pd.concat([own, noise.table], ignore_index=True)
    return Conclusion(table, f"{_verdict(ends, settings)}\n\n{noise.verdict}")


def _root(settings: DemoSettings) -> Path:
    return Path(settings.train.run_dir or "runs/demo")


def _plan(settings: DemoSettings) -> list[TrainSettings]:
    root = _root(settings)
    noise = white_noise.WHITE_NOISE.plan(_noise_pair(settings, root))
    return [*plan_of(_trials(settings, root)), *noise]


def _trials(settings: DemoSettings, root: Path) -> list[Trial]:
    base = settings.train
    rules = {"averaging": replace(base, rule="mean"), "GAF": base}
    # At 0% as well: white noise stands beside real data of the bare name.
    data = f"{base.data}, {base.label_noise:.0%} label noise"
    trials = trials_of(data, rules, settings.seeds)
    controls = [yoked_control(gaf, root, "yoked control") for gaf in trials[settings.seeds :]]
    return trials + controls


def _noise_pair(settings: DemoSettings, root: Path) -> WhiteNoiseSettings:
    quick = white_noise.WHITE_NOISE.presets["quick"]
    base = settings.train
    train = replace(
        quick.train, seed=base.seed, progress=base.progress, run_dir=str(root / "white-noise")
    )
    return replace(quick, seeds=1, train=train)


def _verdict(ends: pd.DataFrame, settings: DemoSettings) -> str:
    over_mean = paired_difference(ends, "test_accuracy", "GAF", "averaging")
    over_yoked = paired_difference(ends, "test_accuracy", "GAF", "yoked control")
    yoked_over_mean = paired_difference(ends, "test_accuracy", "yoked control", "averaging")
    by_rule = ends.groupby("rule")[[*_COLUMNS, *_MEANS]].mean()
    updates, steps = by_rule.loc["GAF", "updates"], settings.train.steps
    best = by_rule.loc["averaging", "best_test_accuracy"]
    explained = yoked_over_mean.mean / over_mean.mean if over_mean.mean > 0 else float("nan")
    if over_mean.mean <= 0:
        gain = "GAF does not gain over averaging here."
    elif over_yoked.excludes_zero and over_yoked.mean > 0:
        gain = "What is left over the control is above zero in its interval."
    else:
        gain = "What is left over the control is not established by these seeds."
    share = f" ({explained:.0%} of the gain)" if over_mean.mean > 0 else ""
    return (
        f"What GAF changed: {over_mean.percent()} points of test accuracy over averaging, with "
        f"{updates:.0f} updates in {steps} steps instead of {steps}. What the control explains: "
        "averaging fresh microbatches, stepping exactly when GAF stepped, gains "
        f"{yoked_over_mean.percent()} points{share}; GAF is {over_yoked.percent()} points above "
        f"that control. {gain} Averaging's best checkpoint by validation scores {best:.1%} on the "
        "test set, so stopping early is the rival to beat. (Mean and 95% interval over "
        f"{settings.seeds} seeds, paired.)"
    )


DEMO = Analysis(
    name="demo",
    question="What does GAF change under label noise, and what does its control explain?",
    presets={"quick": DemoSettings(), "paper": DemoSettings(seeds=8)},
    minutes={"quick": "under 1 minute on 2 cores", "paper": "2 minutes on 2 cores"},
    measure=measure,
    conclude=conclude,
    plan=_plan,
)
