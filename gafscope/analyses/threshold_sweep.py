"""Accuracy and accepted fraction by threshold (arXiv 2412.18052, figure 7), to plain averaging.

Readers of the paper asked for what it leaves out: the accepted fraction beside the accuracy, the
same curve on clean labels, and thresholds up to 2, where GAF is plain averaging.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.comparison import SHOWN, compare, points
from gafscope.analyses.conditions import (
    AVERAGING,
    GAF,
    YOKED,
    Condition,
    measure_conditions,
    plain_averaging,
    plan_conditions,
)
from gafscope.analyses.leads import (
    behind_best_checkpoint,
    best_by_validation,
    check_validated,
    tally,
)
from gafscope.analyses.presets import all_of_cifar, as_published, cifar_part, noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.trials import data_name
from gafscope.errors import UserError
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

PLACE = "threshold"
_PAPER_GRID = (0.95, 0.97, 0.99, 1.01, 1.03, 1.05, 2.0)


@final
@dataclass(frozen=True)
class ThresholdSweepSettings:
    """Train by GAF with each threshold, with wrong labels and with right ones.

    Beside each run stands its yoked control, which averages fresh microbatches and steps exactly
    when GAF stepped: a strict threshold makes few updates, and few updates memorise little.
    """

    taus: tuple[float, ...] = (0.55, 0.65, 0.75, 0.85, 0.95, 1.05, 2.0)
    """The thresholds; 2 is plain averaging."""
    clean: bool = True
    """Draw the curve without label noise too."""
    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=noisy_digits)
    """How to train; --tau is the study's own."""


def measure(settings: ThresholdSweepSettings) -> Measured:
    """Train with every threshold, or go on with it.

    Args:
        settings: The settings.

    Returns:
        One run a threshold, rule or control, and seed, and those of averaging.

    Raises:
        UserError: If a threshold is out of range, or there is none.
    """
    root = Path(settings.train.run_dir or "runs/threshold-sweep")
    conditions = _conditions(settings)
    # The curves of one threshold tell what the end alone does not.
    shown = min(settings.taus, key=lambda tau: abs(tau - 0.75))
    return measure_conditions(conditions, settings.seeds, root, curves_at=shown)


def conclude(
    settings: ThresholdSweepSettings, runs: pd.DataFrame, curves: pd.DataFrame
) -> Conclusion:
    """Average over the seeds and compare threshold by threshold.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Accuracies by threshold, with paired differences to averaging and to the yoked controls.
    """
    table = compare(runs, PLACE)
    return Conclusion(table, _verdict(runs, table), (PLACE, *SHOWN))


def _conditions(settings: ThresholdSweepSettings) -> list[Condition]:
    check_validated(settings.train)
    if not settings.taus:
        raise UserError("There is no threshold to train with; name one or more with --taus.")
    noises = dict.fromkeys([settings.train.label_noise, *([0.0] if settings.clean else [])])
    conditions = []
    for noise in noises:
        base = replace(settings.train, label_noise=noise, rule_options=None)
        mean = plain_averaging(base)
        conditions.append(Condition(data_name(base), AVERAGING, mean))
        for tau in sorted(dict.fromkeys(settings.taus)):
            own = replace(base, rule="gaf", tau=tau)
            conditions.append(Condition(data_name(base), GAF, own, (PLACE, tau), (YOKED,)))
    return conditions


def _verdict(runs: pd.DataFrame, table: pd.DataFrame) -> str:
    sentences = []
    for data, own in table.groupby("data", sort=False):
        filtering = own[own["rule"] == GAF]
        averaging = own[own["rule"] == AVERAGING].iloc[0]
        tried = runs[(runs["data"] == data) & (runs["rule"] == GAF)]
        chosen = filtering[filtering[PLACE] == best_by_validation(tried, PLACE)].iloc[0]
        strict, loose = filtering.iloc[0], filtering.iloc[-1]
        sentences.append(
            f"{data}: averaging ends at {averaging['test_accuracy']:.1%} of the test set, its best "
            f"checkpoint is at {averaging['best_test_accuracy']:.1%}. From tau {strict[PLACE]:g} "
            f"to {loose[PLACE]:g} GAF accepts {strict['accepted']:.0%} to {loose['accepted']:.0%} "
            f"of the microbatches and ends at {strict['test_accuracy']:.1%} to "
            f"{loose['test_accuracy']:.1%}. {_chosen(chosen)}"
        )
    sentences += [tally(table), behind_best_checkpoint(table, PLACE, (AVERAGING, YOKED))]
    return " ".join(sentences)


def _chosen(row: Any) -> str:
    return (
        f"The best tau by validation is {row[PLACE]:g} ({row['test_accuracy']:.1%}, "
        f"{row['accepted']:.0%} accepted): {points(row, 'over_averaging')} points over averaging, "
        f"{points(row, 'over_yoked')} over its yoked control."
    )


THRESHOLD_SWEEP = Analysis(
    name="threshold-sweep",
    question="How does accuracy depend on tau, and how much does each tau let through? (Fig. 7)",
    presets={
        "quick": ThresholdSweepSettings(train=noisy_digits(steps=1000)),
        "cifar": ThresholdSweepSettings(
            taus=_PAPER_GRID, clean=False, seeds=2, train=cifar_part(label_noise=0.05)
        ),
        "gpu": ThresholdSweepSettings(taus=_PAPER_GRID, train=all_of_cifar(label_noise=0.05)),
        "paper": ThresholdSweepSettings(
            taus=_PAPER_GRID, seeds=1, train=as_published(label_noise=0.05)
        ),
    },
    minutes={
        "quick": "3 minutes on 2 cores",
        "cifar": "6 hours on 2 cores",
        "gpu": "3 hours on one large GPU",
        "paper": "weeks on one GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_conditions(_conditions(settings), settings.seeds),
)
