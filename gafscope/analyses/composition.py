"""What microbatches are composed of: random samples, balanced or single classes, similar ones.

The released code of arXiv 2412.18052 balances microbatches by the true labels, which nobody has
where labels are wrong. How much of what is seen of agreement comes from that?
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.comparison import SHOWN, compare, interval_columns, points
from gafscope.analyses.conditions import (
    AVERAGING,
    CONTROLS,
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

PLACE = "composition"
_DISTANCE = "mean_distance"


def _quick() -> TrainSettings:
    return noisy_digits(steps=800, validate_every=25, record_layers_every=0)


@final
@dataclass(frozen=True)
class CompositionSettings:
    """Train with microbatches of each composition, by averaging, by GAF and its controls.

    The controls average microbatches of the same composition.
    """

    compositions: tuple[str, ...] = ("iid", "given", "true", "single", "similar")
    """How microbatches are composed: at random; class-balanced by the given or by the true labels;
    of one given class each; of similar samples each, in groups by the activations before the last
    layer of the network after 100 updates by averaging."""
    rules: tuple[str, ...] = ("gaf",)
    """Rules that filter, each NAME or NAME:OPTION=VALUE. The first has all three controls, the
    others a yoked one."""
    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=_quick)
    """How to train; --balance is the study's own."""


def measure(settings: CompositionSettings) -> Measured:
    """Train with every composition, or go on with it.

    Args:
        settings: The settings.

    Returns:
        One run a composition, rule or control, and seed.

    Raises:
        UserError: If a setting is wrong.
    """
    root = Path(settings.train.run_dir or "runs/composition")
    return measure_conditions(
        _conditions(settings),
        settings.seeds,
        root,
        curves_at=settings.compositions[0],
        more=lambda run: {_DISTANCE: run.scalars["distance_mean"].mean()},
    )


def conclude(settings: CompositionSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds and compare composition by composition.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Accuracies by composition and rule, with paired differences to averaging and the controls,
        and `mean_distance`, the distance averaged over the training.
    """
    table = compare(runs, PLACE)
    distances = [
        interval_columns(_DISTANCE, _of(runs, row)[_DISTANCE].tolist())
        for row in table.to_dict("records")
    ]
    for column in (_DISTANCE, f"{_DISTANCE}_low", f"{_DISTANCE}_high"):
        table[column] = [row[column] for row in distances]
    return Conclusion(table, _verdict(table), (PLACE, *SHOWN, _DISTANCE))


def _conditions(settings: CompositionSettings) -> list[Condition]:
    train = settings.train
    check_validated(train)
    if not settings.compositions:
        raise UserError("There is no composition to train with; name some with --compositions.")
    specs = {RULE_NAMES.get(spec.label, spec.label): spec for spec in parse_rules(settings.rules)}
    conditions = []
    for composition in dict.fromkeys(settings.compositions):
        base = replace(train, balance=composition)
        mean = plain_averaging(base)
        place = (PLACE, composition)
        conditions.append(Condition(base.data, AVERAGING, mean, place))
        for number, (rule, spec) in enumerate(specs.items()):
            controls = (YOKED,) if number else CONTROLS
            conditions.append(Condition(base.data, rule, spec.settings(base), place, controls))
    return conditions


def _of(runs: pd.DataFrame, row: Any) -> pd.DataFrame:
    same = (runs["data"] == row["data"]) & (runs[PLACE] == row[PLACE])
    return runs[same & (runs["rule"] == row["rule"])]


def _verdict(table: pd.DataFrame) -> str:
    sentences = [
        "Distance over the whole training by averaging, and GAF's lead in test accuracy at the "
        "end, in points, paired by seed; 95% intervals."
    ]
    for composition, own in table.groupby(PLACE, sort=False):
        averaging = own[own["rule"] == AVERAGING].iloc[0]
        sentences += [
            f"{composition}, {row['rule']}: distance {_with_ends(averaging)}, "
            f"{row['accepted']:.0%} accepted, {points(row, 'over_averaging')} over averaging, "
            f"{points(row, 'over_yoked')} over its yoked control."
            for row in own[own["over_yoked"].notna()].to_dict("records")
        ]
    idle = table[table["over_yoked"].notna() & (table["updates"] == 0)]
    if len(idle):
        names = ", ".join(f"{row[PLACE]} ({row['rule']})" for row in idle.to_dict("records"))
        sentences.append(f"No update was ever made with {names}.")
    sentences += [tally(table), behind_best_checkpoint(table, PLACE, (AVERAGING, YOKED))]
    return " ".join(sentences)


def _with_ends(row: Any) -> str:
    low, high = row[f"{_DISTANCE}_low"], row[f"{_DISTANCE}_high"]
    ends = "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    return f"{row[_DISTANCE]:.3f}{ends}"


COMPOSITION = Analysis(
    name="composition",
    question="Does agreement depend on how microbatches are composed?",
    presets={
        "quick": CompositionSettings(),
        "cifar": CompositionSettings(train=cifar_part()),
        "gpu": CompositionSettings(train=all_of_cifar()),
        "paper": CompositionSettings(compositions=("given", "true"), seeds=1, train=as_published()),
    },
    minutes={
        "quick": "3 minutes on 2 cores",
        "cifar": "13 hours on 2 cores",
        "gpu": "6 hours on one large GPU",
        "paper": "months on one GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_conditions(_conditions(settings), settings.seeds),
)
