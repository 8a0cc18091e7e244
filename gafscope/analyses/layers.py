"""Which parts of a network disagree, and filtering by model, by layer and by bucket.

Inside Ring-AllReduce gradients arrive bucket by bucket, and readers of arXiv 2412.18052 asked
whether filtering still works when each bucket, or each layer, decides on its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from gafscope.analyses.layer_distances import layer_distances
from gafscope.analyses.leads import behind_best_checkpoint, check_validated, tally
from gafscope.analyses.presets import all_of_cifar, cifar_part, noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.rule_specs import parse_rules
from gafscope.errors import UserError
from gafscope.records import Run
from gafscope.sweep.intervals import paired_difference
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

PLACE = "noise"
SLOWER = "averaging, smaller lr"
WHOLE, NO_PART = "whole model", "-"
_DISTANCE, _WITHIN = "distance of ", "within tau, "
_SHARE = "accepted_share"


def _quick() -> TrainSettings:
    return noisy_digits(model_options={"hidden": "128,64"}, record_layers_every=10)


@final
@dataclass(frozen=True)
class LayersSettings:
    """Filter the whole model at once, each layer and each bucket on its own, with controls.

    A rule that decides layer by layer hardly ever skips a whole step, so its yoked control is
    almost plain averaging. Averaging with a smaller learning rate is the harder rival: layers that
    are skipped now and then move less as well.
    """

    noises: tuple[float, ...] = (0.4,)
    """Shares of the training labels that are moved to another class."""
    rules: tuple[str, ...] = (
        "gaf",
        "by-layer:rule=gaf",
        "by-bucket:rule=gaf,bytes=20000",
    )
    """Rules that filter, each NAME or NAME:OPTION=VALUE. The first has all three controls, the
    others a yoked one. The bytes of a bucket should make several of the network."""
    lr_factor: float = 0.1
    """The smaller learning rate is so many times --lr."""
    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=_quick)
    """How to train; --record-layers-every says how often distances by layer are taken."""


def measure(settings: LayersSettings) -> Measured:
    """Train by each rule and its controls, or go on with it.

    Args:
        settings: The settings.

    Returns:
        One run a rule or control and seed, with the mean distance of each parameter over the
        training and the share of its pairs of microbatches within tau.

    Raises:
        UserError: If a setting is wrong.
    """
    root = Path(settings.train.run_dir or "runs/layers")
    tau, conditions = settings.train.tau, _conditions(settings)
    found = measure_conditions(conditions, settings.seeds, root, more=lambda run: _parts(run, tau))
    # The controls' curves are not drawn.
    rules = {condition.rule for condition in conditions}
    return Measured(found.runs, found.curves[found.curves["rule"].isin(rules)], root)


def conclude(settings: LayersSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds, compare the rules, and compare the parts under averaging.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Accuracies by rule, with paired differences to averaging and the controls, where `part` is
        "-"; then, a row a parameter (`part`), its mean distance and the share of pairs within tau.
    """
    import pandas as pd

    table = compare(runs, PLACE, means=(_SHARE,) if _SHARE in runs else ())
    parts = _part_table(runs)
    both = pd.concat([table.assign(part=NO_PART), parts], ignore_index=True)
    shown = (PLACE, *SHOWN, _SHARE, "part", "part_distance", "within_tau")
    return Conclusion(both, _verdict(runs, table, parts), shown)


def _conditions(settings: LayersSettings) -> list[Condition]:
    train = settings.train
    check_validated(train)
    if train.record_layers_every < 1:
        raise UserError(
            "layers compares the parts of the network, so record_layers_every must be at least 1, "
            f"but is {train.record_layers_every}."
        )
    specs = {RULE_NAMES.get(spec.label, spec.label): spec for spec in parse_rules(settings.rules)}
    conditions = []
    for noise in settings.noises:
        base = replace(train, label_noise=noise)
        mean = plain_averaging(base)
        slower = replace(mean, lr=settings.lr_factor * base.lr)
        place = (PLACE, noise)
        conditions.append(Condition(base.data, AVERAGING, mean, place))
        conditions.append(Condition(base.data, SLOWER, slower, place))
        for number, (rule, spec) in enumerate(specs.items()):
            controls = (YOKED,) if number else CONTROLS
            conditions.append(Condition(base.data, rule, spec.settings(base), place, controls))
    return conditions


def _parts(run: Run, tau: float | None) -> Mapping[str, float]:
    """Give a run's distances by parameter, and how often a parameter on its own is within tau."""
    layers = layer_distances(run)
    columns: dict[str, float] = {}
    if _SHARE in run.scalars:
        columns[_SHARE] = run.scalars[_SHARE].mean()
    recorded = run.scalars.set_index("step")["distance_mean"].loc[layers["step"].unique()]
    for name, distances in [(WHOLE, recorded), *layers.groupby("part", sort=False)["distance"]]:
        columns[f"{_DISTANCE}{name}"] = distances.mean()
        if tau is not None:
            columns[f"{_WITHIN}{name}"] = (distances <= tau).mean()
    return columns


def _part_table(runs: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for (data, noise), group in runs[runs["rule"] == AVERAGING].groupby(["data", PLACE]):
        for column in map(str, group.filter(like=_DISTANCE)):
            name = column.removeprefix(_DISTANCE)
            row: dict[str, Any] = {"data": f"{data}: parts of the network, averaging"}
            row |= {PLACE: noise, "rule": AVERAGING, "seeds": len(group), "part": name}
            row |= interval_columns("part_distance", group[column].tolist())
            if f"{_WITHIN}{name}" in group:
                row |= interval_columns("within_tau", group[f"{_WITHIN}{name}"].tolist())
            rows.append(row)
    return pd.DataFrame(rows)


def _verdict(runs: pd.DataFrame, table: pd.DataFrame, parts: pd.DataFrame) -> str:
    filtering = table[table["over_yoked"].notna()]
    sentences = ["Lead in test accuracy at the end, in points, paired by seed, with 95% intervals."]
    sentences += [
        f"Noise {row[PLACE]:.0%}, {row['rule']}: {points(row, 'over_averaging')} over averaging, "
        f"{points(row, 'over_yoked')} over its yoked control."
        for row in filtering.to_dict("records")
    ]
    sentences += _against_first(runs, list(dict.fromkeys(filtering["rule"])))
    sentences += [tally(table), behind_best_checkpoint(table, PLACE, (AVERAGING, SLOWER, YOKED))]
    for noise, own in parts.groupby(PLACE):
        ordered = own[own["part"] != WHOLE].sort_values("part_distance")
        whole = own[own["part"] == WHOLE].iloc[0]
        ends = [f"{row['part']} ({_with_ends(row)})" for row in (ordered.iloc[0], ordered.iloc[-1])]
        sentences.append(
            f"Under averaging at noise {noise:.0%} the mean distance over the training is least in "
            f"{ends[0]} and largest in {ends[1]}; that of the whole model is {_with_ends(whole)}."
        )
    return " ".join(sentences)


def _against_first(runs: pd.DataFrame, rules: list[str]) -> list[str]:
    """Compare the other rules with the first one, which decides for the whole model."""
    sentences = []
    for noise, own in runs.groupby(PLACE):
        for rule in rules[1:]:
            lead = paired_difference(own, "test_accuracy", rule, rules[0])
            sentences.append(f"Noise {noise:.0%}, {rule} less {rules[0]}: {lead.percent()}.")
    return sentences


def _with_ends(row: Any) -> str:
    low, high = row["part_distance_low"], row["part_distance_high"]
    ends = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return f"{row['part_distance']:.2f}{ends}"


LAYERS = Analysis(
    name="layers",
    question="Which parts disagree, and does filtering by layer or bucket work as well?",
    presets={
        "quick": LayersSettings(),
        "cifar": LayersSettings(
            rules=("gaf", "by-layer:rule=gaf", "by-bucket:rule=gaf,bytes=4000000"),
            train=cifar_part(record_layers_every=20),
        ),
        "gpu": LayersSettings(
            rules=("gaf", "by-layer:rule=gaf", "by-bucket:rule=gaf"),
            train=all_of_cifar(record_layers_every=100),
        ),
    },
    minutes={
        "quick": "3 minutes on 2 cores",
        "cifar": "6 hours on 2 cores",
        "gpu": "3 hours on one large GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_conditions(_conditions(settings), settings.seeds),
)
