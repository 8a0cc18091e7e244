"""A long run: averaging memorises wrong labels, GAF goes on (arXiv 2412.18052, figure 8).

Beside the ends stand the best checkpoints by validation, which a user of averaging would keep, and
the controls, which make as few updates as GAF does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.comparison import SHOWN, compare, interval_columns, points
from gafscope.analyses.conditions import (
    AVERAGING,
    GAF,
    SAME_UPDATES,
    YOKED,
    Condition,
    measure_conditions,
    plain_averaging,
    plan_conditions,
)
from gafscope.analyses.leads import check_validated
from gafscope.analyses.presets import all_of_cifar, as_published, cifar_part, noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.trials import data_name
from gafscope.records import Run
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True)
class LongRunSettings:
    """Train for long by averaging and by GAF, with GAF's controls.

    The yoked control averages fresh microbatches and steps exactly when GAF stepped. The other
    control is averaging that ends after as many updates as GAF made.
    """

    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=noisy_digits)
    """How to train."""


def measure(settings: LongRunSettings) -> Measured:
    """Train, or go on with it.

    Args:
        settings: The settings.

    Returns:
        The runs of averaging, GAF and the controls, with the best validation of each.
    """
    root = Path(settings.train.run_dir or "runs/long-run")
    return measure_conditions(_conditions(settings), settings.seeds, root, more=_best)


def conclude(settings: LongRunSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds, and compare each run's end with its own best.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Accuracies with differences to averaging and the controls, and `validation_lost`: points of
        validation accuracy between the best validation and the end, with an interval.
    """
    table = compare(runs, means=("best_step", "validation_accuracy", "best_validation_accuracy"))
    lost = 100 * (runs["best_validation_accuracy"] - runs["validation_accuracy"])
    intervals = [
        interval_columns("validation_lost", lost[runs["rule"] == rule].dropna().tolist())
        for rule in table["rule"]
    ]
    for name in intervals[0]:
        table[name] = [interval[name] for interval in intervals]
    shown = (*SHOWN, "best_step", "validation_lost")
    return Conclusion(table, _verdict(table, settings.train.steps), shown)


def _conditions(settings: LongRunSettings) -> list[Condition]:
    check_validated(settings.train)
    base = settings.train
    mean = plain_averaging(base)
    gaf = replace(base, rule="gaf")
    return [
        Condition(data_name(base), AVERAGING, mean),
        Condition(data_name(base), GAF, gaf, controls=(YOKED, SAME_UPDATES)),
    ]


def _best(run: Run) -> Mapping[str, Any]:
    return {
        name: run.summary.get(name, float("nan"))
        for name in ("best_step", "best_validation_accuracy")
    }


def _verdict(table: pd.DataFrame, steps: int) -> str:
    rows = {row["rule"]: row for row in table.to_dict("records")}
    sentences = [
        f"{rule}: train accuracy on the given labels {row['train_accuracy']:.1%} at the end; best "
        f"validation about step {row['best_step']:,.0f} of {steps:,}, from which "
        f"{points(row, 'validation_lost')} points are lost by the end; test accuracy "
        f"{row['best_test_accuracy']:.1%} there and {row['test_accuracy']:.1%} at the end."
        for rule, row in rows.items()
        if rule != SAME_UPDATES
    ]
    averaging, gaf = rows[AVERAGING], rows[GAF]
    overfits = averaging["validation_lost_low"] > 0
    sentences.append(
        f"Averaging {'overfits' if overfits else 'is not shown to overfit'}. At the end GAF is "
        f"{points(gaf, 'over_averaging')} points over averaging, {points(gaf, 'over_yoked')} over "
        f"its yoked control and {points(gaf, 'over_same_updates')} over averaging of as many "
        f"updates; best checkpoint against best checkpoint, {points(gaf, 'best_over_averaging')} "
        f"over averaging and {points(gaf, 'best_over_yoked')} over the yoked control."
    )
    return " ".join(sentences)


LONG_RUN = Analysis(
    name="long-run",
    question="Does averaging overfit in a long run, and does GAF go on? (Fig. 8)",
    presets={
        "quick": LongRunSettings(train=noisy_digits(steps=6000, validate_every=100)),
        "cifar": LongRunSettings(
            seeds=2, train=cifar_part(data="cifar100n", label_noise=0.0, steps=4000)
        ),
        "gpu": LongRunSettings(train=all_of_cifar(data="cifar100n", label_noise=0.0, steps=60_000)),
        "paper": LongRunSettings(
            seeds=1,
            train=as_published(data="cifar100n", label_noise=0.0, model="resnet34", steps=600_000),
        ),
    },
    minutes={
        "quick": "2 minutes on 2 cores",
        "cifar": "3 hours on 2 cores",
        "gpu": "2 hours on one large GPU",
        "paper": "two weeks on one GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_conditions(_conditions(settings), settings.seeds),
)
