"""What GAF gains as microbatches grow, down to single samples (arXiv 2412.18052, figure 9).

Every size has its own best threshold, chosen by validation; that one stands beside averaging and
beside its yoked control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.comparison import SHOWN, compare, points
from gafscope.analyses.conditions import (
    AVERAGING,
    GAF,
    YOKED,
    Condition,
    control_name,
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

PLACE = "microbatch_size"
_PAPER_SIZES = (100, 200, 300, 400, 500)
_PAPER_TAUS = (0.95, 0.97, 0.99)


@final
@dataclass(frozen=True)
class MicrobatchSweepSettings:
    """Train with microbatches of each size, by averaging and by GAF with each threshold.

    All make the same number of steps, so larger microbatches see more samples. The threshold of
    a size is the one that validates best; its yoked control averages fresh microbatches and steps
    exactly when GAF stepped.
    """

    sizes: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    """u, samples a microbatch."""
    taus: tuple[float, ...] = (0.75, 0.85, 0.95)
    """Thresholds to choose from."""
    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=noisy_digits)
    """How to train; --microbatch-size and --tau are the study's own."""


def measure(settings: MicrobatchSweepSettings) -> Measured:
    """Train with every size and threshold, then the controls of the chosen ones, or go on with it.

    Args:
        settings: The settings.

    Returns:
        One run a size, rule or control, and seed.

    Raises:
        UserError: If there are no sizes or thresholds, or one is out of range.
    """
    root = Path(settings.train.run_dir or "runs/microbatch-sweep")
    tried = measure_conditions(_conditions(settings, {}), settings.seeds, root)
    conditions = _conditions(settings, _choose(tried.runs))
    # What was tried is there already: only the controls are trained now.
    shown = min(settings.sizes)
    return measure_conditions(conditions, settings.seeds, root, curves_at=shown)


def conclude(
    settings: MicrobatchSweepSettings, runs: pd.DataFrame, curves: pd.DataFrame
) -> Conclusion:
    """Choose the threshold of each size by validation, and compare size by size.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Accuracies by size, with paired differences to averaging and to the yoked control of the
        chosen threshold, which is called GAF; the others keep their names.
    """
    renamed = runs.copy()
    for size, tau in _choose(runs).items():
        names = {_rule(tau): GAF, control_name(YOKED, _rule(tau)): YOKED}
        here = renamed[PLACE] == size
        renamed.loc[here, "rule"] = renamed.loc[here, "rule"].replace(names)
    table = compare(renamed, PLACE, means=("tau", "validation_accuracy"))
    return Conclusion(table, _verdict(table), (PLACE, "tau", *SHOWN))


def _choose(runs: pd.DataFrame) -> dict[int, float]:
    """Give the threshold of each size that validates best at the end."""
    own = runs[runs["tau"].notna()]
    sizes = dict.fromkeys(own[PLACE].tolist())
    return {size: best_by_validation(own[own[PLACE] == size], "tau") for size in sizes}


def _rule(tau: float) -> str:
    return f"{GAF} tau {tau:g}"


def _conditions(settings: MicrobatchSweepSettings, chosen: Mapping[int, float]) -> list[Condition]:
    """List the conditions; a chosen threshold has a yoked control."""
    check_validated(settings.train)
    if not settings.sizes or min(settings.sizes) < 1:
        raise UserError(
            f"sizes must be one or more numbers of samples, at least 1, but are {settings.sizes}."
        )
    if not settings.taus:
        raise UserError("There is no threshold to choose from; name one or more with --taus.")
    conditions = []
    for size in sorted(set(settings.sizes)):
        base = replace(settings.train, microbatch_size=size, rule_options=None)
        mean = plain_averaging(base)
        data, place = data_name(base), (PLACE, size)
        conditions.append(Condition(data, AVERAGING, mean, place))
        for tau in sorted(set(settings.taus)):
            controls = (YOKED,) if chosen.get(size) == tau else ()
            own = replace(base, rule="gaf", tau=tau)
            conditions.append(Condition(data, _rule(tau), own, place, controls))
    return conditions


def _plan(settings: MicrobatchSweepSettings) -> list[TrainSettings]:
    # As many controls as there are sizes, whichever threshold they will belong to.
    first = dict.fromkeys(settings.sizes, min(settings.taus, default=0.0))
    return plan_conditions(_conditions(settings, first), settings.seeds)


def _verdict(table: pd.DataFrame) -> str:
    filtering = table[table["rule"] == GAF].to_dict("records")
    sentences = ["Lead in test accuracy at the end, in points, paired by seed, with 95% intervals."]
    sentences += [
        f"u = {row[PLACE]}: best tau by validation {row['tau']:g}, {row['accepted']:.0%} accepted, "
        f"{points(row, 'over_averaging')} over averaging, {points(row, 'over_yoked')} over its "
        "yoked control."
        for row in filtering
    ]
    ranked = [row[PLACE] for row in sorted(filtering, key=lambda row: row["over_averaging"])]
    sentences.append(
        f"The gain over averaging is smallest at u = {ranked[0]}, largest at u = {ranked[-1]}."
    )
    sentences += [tally(table), behind_best_checkpoint(table, PLACE, (AVERAGING, YOKED))]
    return " ".join(sentences)


MICROBATCH_SWEEP = Analysis(
    name="microbatch-sweep",
    question="Does GAF gain less with larger microbatches, and with which tau? (Fig. 9)",
    presets={
        # Few images and a small learning rate: averaging memorises them from u = 5 on, and does
        # not diverge at u = 1.
        "quick": MicrobatchSweepSettings(
            train=noisy_digits(subset=500, validation=0.3, steps=1000, lr=0.01)
        ),
        "cifar": MicrobatchSweepSettings(
            sizes=(10, 50, 100, 200),
            taus=(0.95, 0.98, 0.99),
            seeds=2,
            train=cifar_part(data="cifar100n", label_noise=0.0, balance="iid"),
        ),
        "gpu": MicrobatchSweepSettings(
            sizes=_PAPER_SIZES,
            taus=_PAPER_TAUS,
            train=all_of_cifar(data="cifar100n", label_noise=0.0),
        ),
        "paper": MicrobatchSweepSettings(
            sizes=_PAPER_SIZES,
            taus=_PAPER_TAUS,
            seeds=1,
            train=as_published(data="cifar100n", label_noise=0.0),
        ),
    },
    minutes={
        "quick": "3 minutes on 2 cores",
        "cifar": "12 hours on 2 cores",
        "gpu": "12 hours on one large GPU",
        "paper": "months on one GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=_plan,
)
