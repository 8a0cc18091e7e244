"""Acceptance, accuracy and cost as more microbatches are compared.

The authors of arXiv 2412.18052 expect more microbatches to find agreement more often. k grows twice
here: at constant microbatches, where a step sees more samples, and at constant macrobatches, which
are cut into smaller parts.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from gafscope.analyses.leads import behind_best_checkpoint, check_validated, tally
from gafscope.analyses.presets import all_of_cifar, cifar_part, noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.trials import data_name
from gafscope.errors import UserError
from gafscope.records import Run
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

PLACE = "microbatches"


@final
@dataclass(frozen=True)
class MicrobatchCountSettings:
    """Train with ever more microbatches a step, by averaging and by GAF with its yoked control.

    Once every microbatch has --microbatch-size samples. Once the macrobatch has the samples of the
    largest k there, cut into ever smaller microbatches.
    """

    counts: tuple[int, ...] = (2, 4, 8, 16)
    """k, microbatches a step; each divides the largest."""
    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=noisy_digits)
    """How to train; --microbatches is the study's own."""


def measure(settings: MicrobatchCountSettings) -> Measured:
    """Train with every number of microbatches, or go on with it.

    Args:
        settings: The settings.

    Returns:
        One run a size, number, rule or control, and seed, with its seconds a step.

    Raises:
        UserError: If a number is below 2 or does not divide the largest.
    """
    root = Path(settings.train.run_dir or "runs/microbatch-count")
    shown = max(settings.counts, default=0)
    conditions = _conditions(settings)
    return measure_conditions(conditions, settings.seeds, root, curves_at=shown, more=_cost)


def conclude(
    settings: MicrobatchCountSettings, runs: pd.DataFrame, curves: pd.DataFrame
) -> Conclusion:
    """Average over the seeds and compare number by number.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Accuracies by number, with paired differences to averaging and to the yoked controls;
        `stepped`, the share of steps at which some microbatches agreed; `milliseconds` a step
        (10% quantile) and `over_averaging_time`, its multiple of averaging's.
    """
    table = compare(runs, PLACE, means=("stepped", "milliseconds"))
    plain = table[table["rule"] == AVERAGING].set_index(["data", PLACE])["milliseconds"]
    keys = zip(table["data"], table[PLACE], strict=True)
    table["over_averaging_time"] = table["milliseconds"] / [plain[key] for key in keys]
    shown = (PLACE, *SHOWN, "stepped", "over_averaging_time")
    return Conclusion(table, _verdict(table), shown)


def _conditions(settings: MicrobatchCountSettings) -> list[Condition]:
    base, counts = settings.train, sorted(set(settings.counts))
    check_validated(base)
    largest = counts[-1] if counts else 0
    wrong = [k for k in counts if k < 2 or largest % k] if counts else [0]
    if wrong:
        raise UserError(
            f"counts must be at least 2 and divide the largest, {largest}, but {wrong[0]} is among "
            "them; use e.g. --counts 2 4 8 16."
        )
    size = base.microbatch_size
    grids = {
        f"microbatches of {size}": dict.fromkeys(counts, size),
        f"macrobatches of {largest * size}": {k: largest * size // k for k in counts},
    }
    conditions = []
    for grid, sizes in grids.items():
        data = f"{data_name(base)}, {grid}"
        for k, samples in sizes.items():
            own = replace(base, rule="gaf", microbatches=k, microbatch_size=samples)
            mean = plain_averaging(own)
            conditions.append(Condition(data, AVERAGING, mean, (PLACE, k)))
            conditions.append(Condition(data, GAF, own, (PLACE, k), (YOKED,)))
    return conditions


def _cost(run: Run) -> Mapping[str, Any]:
    """Give the share of steps with an update, and the time of a step."""
    # Other work on the machine makes steps slower, never faster: the fastest tenth is free of it,
    # and of validations and Gramians by layer.
    return {
        "stepped": run.summary["updates"] / run.summary["steps"],
        "milliseconds": 1000 * run.scalars["seconds"].quantile(0.1),
    }


def _verdict(table: pd.DataFrame) -> str:
    sentences = []
    for data, own in table[table["rule"] == GAF].groupby("data", sort=False):
        rows = own.to_dict("records")
        few, many = rows[0], rows[-1]
        sentences.append(
            f"{data}: from {few[PLACE]} to {many[PLACE]} microbatches some agree at "
            f"{few['stepped']:.0%} to {many['stepped']:.0%} of the steps, and "
            f"{few['accepted']:.0%} to {many['accepted']:.0%} of the microbatches are accepted; "
            f"GAF leads averaging by {points(few, 'over_averaging')} to "
            f"{points(many, 'over_averaging')} points and its yoked control by "
            f"{points(few, 'over_yoked')} to {points(many, 'over_yoked')}; its step takes "
            f"{few['over_averaging_time']:.2f} to {many['over_averaging_time']:.2f} of averaging's."
        )
    sentences += [tally(table), behind_best_checkpoint(table, PLACE, (AVERAGING, YOKED))]
    return " ".join(sentences)


MICROBATCH_COUNT = Analysis(
    name="microbatch-count",
    question="Do more microbatches find agreement more often, and at what cost?",
    presets={
        "quick": MicrobatchCountSettings(train=noisy_digits(steps=600, microbatch_size=5)),
        "cifar": MicrobatchCountSettings(
            counts=(2, 4, 8), seeds=2, train=cifar_part(balance="iid", microbatch_size=25)
        ),
        "gpu": MicrobatchCountSettings(train=all_of_cifar()),
    },
    minutes={
        "quick": "3 minutes on 2 cores",
        "cifar": "10 hours on 2 cores",
        "gpu": "12 hours on one large GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_conditions(_conditions(settings), settings.seeds),
)
