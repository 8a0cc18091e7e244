"""Whether a calibrated threshold does as well as the best one set by hand.

The best hand-set tau is the one with the highest mean validation accuracy over the seeds; the
test split is read once a run. Each filtering rule that is compared stands beside its yoked
control: plain averaging of fresh microbatches that steps exactly when the rule stepped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import pandas as pd
from tyro.conf import OmitArgPrefixes

from gafscope.analyses.presets import noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.trials import (
    Trial,
    curves_of,
    data_name,
    ends_of,
    plan_of,
    run_trials,
    trials_of,
    yoked_control,
)
from gafscope.sweep.intervals import over_seeds, paired_difference
from gafscope.trainer import TrainSettings

AVERAGING, CALIBRATED, ADAPTIVE = "averaging", "calibrated GAF", "adaptive GAF"
_COLUMNS = ("test_accuracy", "best_test_accuracy", "validation_accuracy", "train_accuracy")
_MEANS = ("accepted", "updates", "tau")


@final
@dataclass(frozen=True)
class CalibratedTauSettings:
    """Train with thresholds set by hand, calibrated and adaptive, and compare them."""

    taus: tuple[float, ...] = (0.65, 0.75, 0.85, 0.95)
    """The grid of thresholds set by hand."""
    false_accept: float = 0.05
    """Calibrated GAF: share of independent micro-gradients that it lets through."""
    calibration_rows: int = 32
    """Calibrated GAF: parts of a macrobatch that it calibrates on."""
    calibrate_every: int = 500
    """Calibrated GAF: steps between calibrations."""
    target_acceptance: float = 0.5
    """Adaptive GAF: share of microbatches that it lets through."""
    seeds: int = 8
    """Seeds of each rule, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=noisy_digits)
    """How to train; --rule and --tau are the study's own."""


def measure(settings: CalibratedTauSettings) -> Measured:
    """Train, or go on with it.

    Args:
        settings: The settings.

    Returns:
        The runs of each rule and of the controls of those compared.
    """
    root = Path(settings.train.run_dir or "runs/calibrated-tau")
    trials = _rules(settings)
    runs = run_trials(trials, root)
    ends = ends_of(trials, runs)
    best = _best_by_validation(ends, settings)
    compared = [trial for trial in trials if trial.rule in (best, CALIBRATED, ADAPTIVE)]
    controls = _controls(compared, root)
    runs += run_trials(controls, root)
    trials += controls
    curves = curves_of(trials, runs).groupby(["data", "rule", "step"], sort=False)
    # The figure shows means over the seeds.
    drawn = curves[["rolling_distance", "rolling_accepted", "tau"]].mean().reset_index()
    return Measured(ends_of(trials, runs), drawn, root)


def conclude(
    settings: CalibratedTauSettings, runs: pd.DataFrame, curves: pd.DataFrame
) -> Conclusion:
    """Average over the seeds and compare.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Accuracies, acceptance and updates of each rule and of the controls of those compared.
    """
    table = over_seeds(runs, ("data", "rule"), _COLUMNS, _MEANS)
    return Conclusion(table, _verdict(runs, _best_by_validation(runs, settings), settings))


def _controls(trials: list[Trial], root: Path) -> list[Trial]:
    return [yoked_control(trial, root, f"yoked to {trial.rule}") for trial in trials]


def _plan(settings: CalibratedTauSettings) -> list[TrainSettings]:
    trials = _rules(settings)
    compared = trials[-3 * settings.seeds :]  # as many as those of the best threshold and two more
    return plan_of([*trials, *_controls(compared, Path())])


def _rules(settings: CalibratedTauSettings) -> list[Trial]:
    base = settings.train
    rules: dict[str, dict[str, object]] = {AVERAGING: {"rule": "mean"}}
    rules |= {_by_hand(tau): {"rule": "gaf", "tau": tau} for tau in settings.taus}
    calibrated = {
        "false_accept": str(settings.false_accept),
        "calibration_rows": str(settings.calibration_rows),
        "every": str(settings.calibrate_every),
    }
    adaptive = {"target_acceptance": str(settings.target_acceptance)}
    rules[CALIBRATED] = {"rule": "calibrated-gaf", "rule_options": calibrated}
    rules[ADAPTIVE] = {"rule": "adaptive-gaf", "rule_options": adaptive}
    changed = {name: replace(base, **changes) for name, changes in rules.items()}
    return trials_of(data_name(base), changed, settings.seeds)


def _by_hand(tau: float) -> str:
    return f"GAF tau {tau:g}"


def _best_by_validation(ends: pd.DataFrame, settings: CalibratedTauSettings) -> str:
    validation = ends.groupby("rule")["validation_accuracy"].mean()
    return str(validation[[_by_hand(tau) for tau in settings.taus]].idxmax())


def _verdict(ends: pd.DataFrame, best: str, settings: CalibratedTauSettings) -> str:
    sentences = [
        f"The best threshold set by hand, by validation accuracy, is {best}. Test accuracy at the "
        f"end, paired over {settings.seeds} seeds, in points with 95% intervals:"
    ]
    for rule in (CALIBRATED, ADAPTIVE):
        over_best = paired_difference(ends, "test_accuracy", rule, best)
        over_control = paired_difference(ends, "test_accuracy", rule, f"yoked to {rule}")
        over_mean = paired_difference(ends, "test_accuracy", rule, AVERAGING)
        worse = over_best.high < 0
        word = "worse than" if worse else "not worse, within the interval, than"
        sentences.append(
            f"{rule} is {word} {best}: {over_best.percent()}; over averaging "
            f"{over_mean.percent()}; over its own yoked control {over_control.percent()}."
        )
    control = paired_difference(ends, "test_accuracy", best, f"yoked to {best}")
    sentences.append(f"{best} itself over its yoked control: {control.percent()}.")
    stopped = ends[ends["rule"] == AVERAGING]["best_test_accuracy"].mean()
    sentences.append(
        f"Averaging's best checkpoint by validation scores {stopped:.1%} on the test set."
    )
    return " ".join(sentences)


def _human_cifar() -> TrainSettings:
    return TrainSettings(
        data="cifar100n",
        subset=5000,
        model="resnet18",
        model_options={"stem": "imagenet"},
        channels_last=True,
        microbatch_size=100,
        steps=400,
        lr=0.01,
        # At initialisation gradients agree so little that a strict threshold may never start.
        warmup_updates=100,
        validate_every=50,
        record_layers_every=0,
    )


CALIBRATED_TAU = Analysis(
    name="calibrated-tau",
    question="Does a calibrated threshold do as well as the best one set by hand?",
    presets={
        "quick": CalibratedTauSettings(seeds=4),
        "full": CalibratedTauSettings(),
        "cifar": CalibratedTauSettings(
            taus=(0.9, 0.95, 0.97, 1.0),
            calibration_rows=10,
            calibrate_every=100,
            seeds=2,
            train=_human_cifar(),
        ),
    },
    minutes={
        "quick": "3 minutes on 2 cores",
        "full": "5 minutes on 2 cores",
        "cifar": "an hour and a half on 2 cores",
    },
    measure=measure,
    conclude=conclude,
    plan=_plan,
)
