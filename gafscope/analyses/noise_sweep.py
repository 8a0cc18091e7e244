"""Accuracy as more and more labels are wrong (arXiv 2412.18052, figure 6 and table 1).

Averaging and GAF at each noise level, each GAF run beside its three controls, and averaging with a
smaller learning rate: whatever makes fewer or smaller updates memorises less.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.comparison import SHOWN, compare, points
from gafscope.analyses.conditions import (
    AVERAGING,
    CONTROLS,
    GAF,
    RULE_NAMES,
    YOKED,
    Condition,
    measure_conditions,
    plain_averaging,
    plan_conditions,
)
from gafscope.analyses.leads import behind_best_checkpoint, check_validated, tally
from gafscope.analyses.presets import all_of_cifar, as_published, cifar_part, noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.rule_specs import parse_rules
from gafscope.errors import UserError
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

PLACE = "noise"
SLOWER = "averaging, smaller lr"
PAPER: dict[float, tuple[float, float]] = {
    0.0: (0.63, 0.62),
    0.05: (0.61, 0.58),
    0.15: (0.60, 0.53),
    0.2: (0.58, 0.50),
    0.3: (0.54, 0.40),
    0.4: (0.53, 0.38),
    0.5: (0.48, 0.33),
    0.6: (0.39, 0.20),
    0.75: (0.13, 0.11),
}
"""Noise -> the paper's validation accuracy by GAF and by averaging (its table 1)."""


@final
@dataclass(frozen=True)
class NoiseSweepSettings:
    """Train at each noise level by averaging and by GAF, with the controls of GAF.

    The controls average plainly: stepping exactly when GAF stepped, stopped after as many updates,
    or skipping as many at random.
    """

    noises: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.75, 0.9)
    """Shares of the training labels that are moved to another class."""
    rules: tuple[str, ...] = ("gaf",)
    """Rules that filter, each NAME or NAME:OPTION=VALUE. The first has all three controls, the
    others a yoked one."""
    cold_start: bool = False
    """Train each GAF of a fixed threshold also without --warmup-updates, to see whether it starts;
    without a control."""
    lr_factor: float = 0.1
    """The smaller learning rate is so many times --lr."""
    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=noisy_digits)
    """How to train; --label-noise is the study's own."""


def measure(settings: NoiseSweepSettings) -> Measured:
    """Train at every noise level, or go on with it.

    Args:
        settings: The settings.

    Returns:
        One run a noise level, rule or control, and seed.

    Raises:
        UserError: If a noise level is out of range.
    """
    root = Path(settings.train.run_dir or "runs/noise-sweep")
    # The curves of one level tell what the end alone does not.
    shown = min(settings.noises, key=lambda noise: abs(noise - 0.4))
    return measure_conditions(_conditions(settings), settings.seeds, root, curves_at=shown)


def conclude(settings: NoiseSweepSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds and compare level by level.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Accuracies by noise level and rule, with paired differences to averaging and the controls;
        beside them the paper's, which are of another network and data set.
    """
    table = compare(runs, PLACE)
    column = {GAF: 0, AVERAGING: 1}
    table["paper_accuracy"] = [
        PAPER[noise][column[rule]] if rule in column and noise in PAPER else float("nan")
        for noise, rule in zip(table[PLACE], table["rule"], strict=True)
    ]
    return Conclusion(table, _verdict(table), (PLACE, *SHOWN, "paper_accuracy"))


def _conditions(settings: NoiseSweepSettings) -> list[Condition]:
    check_validated(settings.train)
    for noise in settings.noises:
        if not 0 <= noise < 1:
            raise UserError(f"noises must lie in [0, 1), but {noise:g} is among them.")
    specs = {RULE_NAMES.get(spec.label, spec.label): spec for spec in parse_rules(settings.rules)}
    conditions = []
    for noise in settings.noises:
        base = replace(settings.train, label_noise=noise)
        mean = plain_averaging(base)
        slower = replace(mean, lr=settings.lr_factor * base.lr)
        place = (PLACE, noise)
        conditions.append(Condition(base.data, AVERAGING, mean, place))
        conditions.append(Condition(base.data, SLOWER, slower, place))
        for number, (rule, spec) in enumerate(specs.items()):
            controls = (YOKED,) if number else CONTROLS
            own = spec.settings(base)
            conditions.append(Condition(base.data, rule, own, place, controls))
            if settings.cold_start and spec.name == "gaf":
                cold = replace(own, warmup_updates=0)
                conditions.append(Condition(base.data, f"{rule}, cold", cold, place))
    return conditions


def _verdict(table: pd.DataFrame) -> str:
    filtering = table[table["over_yoked"].notna()]
    sentences = ["Lead in test accuracy at the end, in points, paired by seed, with 95% intervals."]
    sentences += [
        f"Noise {row[PLACE]:.0%}, {row['rule']}: {points(row, 'over_averaging')} over averaging, "
        f"{points(row, 'over_yoked')} over its yoked control."
        for row in filtering.to_dict("records")
    ]
    sentences += [tally(table), behind_best_checkpoint(table, PLACE, (AVERAGING, SLOWER, YOKED))]
    return " ".join(sentences)


NOISE_SWEEP = Analysis(
    name="noise-sweep",
    question="What does GAF gain as more labels are wrong, over averaging and controls? (Fig. 6)",
    presets={
        "quick": NoiseSweepSettings(train=noisy_digits(steps=1000)),
        "cifar": NoiseSweepSettings(
            noises=(0.4,),
            rules=(
                "gaf",
                "gaf:tau=0.97",
                "gaf:tau=0.99",
                "calibrated-gaf",
                "adaptive-gaf",
                "soft-gaf",
            ),
            cold_start=True,
            train=cifar_part(),
        ),
        "gpu": NoiseSweepSettings(noises=tuple(PAPER), train=all_of_cifar()),
        "paper": NoiseSweepSettings(noises=tuple(PAPER), seeds=1, train=as_published()),
    },
    minutes={
        "quick": "4 minutes on 2 cores",
        "cifar": "10 hours on 2 cores",
        "gpu": "5 hours on one large GPU",
        "paper": "months on one GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_conditions(_conditions(settings), settings.seeds),
)
