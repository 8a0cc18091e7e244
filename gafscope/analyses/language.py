"""A small language model on real text: are its micro-gradients opposed, and does filtering help?

The discussion of arXiv 2412.18052 expects distances up to 2 in language models. Here the distance
of two microbatches is followed over the training of a GPT that predicts the next byte, for windows
drawn at random, for microbatches that hold each task equally (documentation, source code, tables of
numbers), and for microbatches of one task each. What is compared is the loss, in nats a byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.comparison import interval_columns
from gafscope.analyses.conditions import (
    AVERAGING,
    CONTROLS,
    RANDOM_SKIP,
    RULE_NAMES,
    SAME_UPDATES,
    YOKED,
    Condition,
    control_name,
    measure_conditions,
    plain_averaging,
    plan_conditions,
)
from gafscope.analyses.leads import check_validated
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.rule_specs import parse_rules
from gafscope.errors import UserError
from gafscope.records import Run
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

PLACE = "composition"
_COMPOSITIONS = {"iid": "at random", "given": "each task equally", "single": "one task each"}
_UNDER = {
    AVERAGING: "under_averaging",
    YOKED: "under_yoked",
    SAME_UPDATES: "under_same_updates",
    RANDOM_SKIP: "under_random_skip",
}
_LOSSES = ("test_loss", "best_test_loss")
_DISTANCES = ("mean_distance", "late_distance")
_MEANS = ("distance_q05", "distance_median", "distance_q95", "opposed", "accepted", "updates")
# The late distance is a mean over the last of so many equal parts of the training.
_PARTS = 10


def _small_text(**changes: Any) -> TrainSettings:
    settings = TrainSettings(
        data="text",
        data_options={"context": "32", "size": "60000"},
        model="gpt",
        model_options={"dim": "32", "depth": "2", "heads": "2"},
        tau=0.97,
        microbatch_size=12,
        steps=300,
        optimizer="adamw",
        lr=0.003,
        validate_every=50,
        record_layers_every=0,
        threads=1,
    )
    return replace(settings, **changes)


@final
@dataclass(frozen=True)
class LanguageSettings:
    """Train a GPT on text, by averaging, by GAF and its controls, with microbatches of each kind.

    The controls average microbatches of the same composition. --data-dir names texts of your own:
    a file, or a folder whose files are tasks.
    """

    compositions: tuple[str, ...] = ("iid", "given", "single")
    """How microbatches are composed: windows at random; each task (kind of text) equally; of one
    task each."""
    sizes: tuple[int, ...] = (1,)
    """Further microbatch sizes, at which windows at random are averaged: single windows disagree
    most."""
    rules: tuple[str, ...] = ("gaf",)
    """Rules that filter, each NAME or NAME:OPTION=VALUE. The first has all three controls, the
    others a yoked one."""
    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=_small_text)
    """How to train; --balance is the study's own. With two microbatches every step's distance is
    known."""


def measure(settings: LanguageSettings) -> Measured:
    """Train with every composition, or go on with it.

    Args:
        settings: The settings.

    Returns:
        One run a composition, rule or control, and seed, with its losses and the distribution of
        its distances over the steps; as curves those of averaging.

    Raises:
        UserError: If a setting is wrong.
    """
    root = Path(settings.train.run_dir or "runs/language")
    measured = measure_conditions(_conditions(settings), settings.seeds, root, more=_of_run)
    curves = measured.curves[measured.curves["rule"] == AVERAGING].dropna(axis=1, how="all")
    return Measured(measured.runs, curves, root)


def conclude(settings: LanguageSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds and compare composition by composition.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Losses by composition and rule, how far they are under averaging's and the controls',
        paired by seed; and over the steps the mean distance, that of the last tenth, quantiles,
        the largest of all seeds, and the share `opposed` that is above 1.
    """
    import pandas as pd

    rows = []
    for key, group in runs.groupby(["data", PLACE, "rule"], sort=False):
        row: dict[str, Any] = dict(zip(("data", PLACE, "rule"), key, strict=True))
        row["seeds"] = len(group)
        for column in (*_LOSSES, *_DISTANCES):
            row |= interval_columns(column, group[column].dropna().tolist())
        for other, name in _UNDER.items():
            row |= interval_columns(name, _differences(runs, row, other))
        row |= {column: group[column].mean() for column in _MEANS}
        rows.append(row | {"distance_largest": group["distance_largest"].max()})
    table = pd.DataFrame(rows)
    shown = (PLACE, "rule", *_LOSSES, "under_averaging", "under_yoked", "mean_distance")
    return Conclusion(
        table, _verdict(table, runs), (*shown, "distance_largest", "opposed", "accepted")
    )


def _conditions(settings: LanguageSettings) -> list[Condition]:
    train = settings.train
    check_validated(train)
    if train.microbatches != 2:
        raise UserError(
            "The study follows the distance of two microbatches step by step, so microbatches must "
            f"be 2, but is {train.microbatches}."
        )
    for composition in settings.compositions:
        if composition not in _COMPOSITIONS:
            raise UserError(
                f"compositions are iid, given and single here, but '{composition}' is among them."
            )
    if not settings.compositions:
        raise UserError("There is no composition to train with; name some with --compositions.")
    specs = {RULE_NAMES.get(spec.label, spec.label): spec for spec in parse_rules(settings.rules)}
    conditions = []
    for composition in dict.fromkeys(settings.compositions):
        base = replace(train, balance=composition)
        data, place = _data(base), (PLACE, composition)
        conditions.append(Condition(data, AVERAGING, plain_averaging(base), place))
        for number, (rule, spec) in enumerate(specs.items()):
            controls = (YOKED,) if number else CONTROLS
            conditions.append(Condition(data, rule, spec.settings(base), place, controls))
    for size in dict.fromkeys(settings.sizes):
        base = plain_averaging(replace(train, balance="iid", microbatch_size=size))
        if size != train.microbatch_size:
            conditions.append(Condition(_data(base), AVERAGING, base, (PLACE, "iid")))
    return conditions


def _data(settings: TrainSettings) -> str:
    return f"{settings.data}, u = {settings.microbatch_size}"


def _of_run(run: Run) -> dict[str, float]:
    """Give the losses at the end, and how the distances are distributed over the steps."""
    distance = run.scalars["distance_mean"].dropna()
    low, median, high = distance.quantile([0.05, 0.5, 0.95])
    return {
        # A run that ended before its first validation has no best one.
        **{name: run.summary.get(name, math.nan) for name in _LOSSES},
        "mean_distance": distance.mean(),
        "late_distance": distance.tail(max(1, len(distance) // _PARTS)).mean(),
        "distance_q05": low,
        "distance_median": median,
        "distance_q95": high,
        "distance_largest": distance.max(),
        "opposed": (distance > 1).mean(),
    }


def _differences(runs: pd.DataFrame, row: dict[str, Any], other: str) -> list[float]:
    """Give how far the test loss is under that of averaging or of a control, seed by seed."""
    same = runs[(runs["data"] == row["data"]) & (runs[PLACE] == row[PLACE])]
    wanted = other if other == AVERAGING else control_name(other, row["rule"])
    if row["rule"] == wanted:
        return []
    losses = same.set_index("seed")["test_loss"]
    own, theirs = (losses[(same["rule"] == rule).to_numpy()] for rule in (row["rule"], wanted))
    return (theirs - own).dropna().tolist()


def _verdict(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    averaging = table[table["rule"] == AVERAGING]
    sentences = ["Cosine distance of two microbatches over the whole training by averaging."]
    sentences += [
        f"{row['data']}, {_COMPOSITIONS[row[PLACE]]}: {_with_ends(row, 'mean_distance')} on "
        f"average, {_with_ends(row, 'late_distance')} in the last tenth of the steps; nine in ten "
        f"steps between {row['distance_q05']:.2f} and {row['distance_q95']:.2f}, "
        f"{row['opposed']:.1%} above 1, the largest {row['distance_largest']:.2f}."
        for row in averaging.to_dict("records")
    ]
    steps = int(runs[runs["rule"] == AVERAGING]["steps"].sum())
    sentences.append(
        f"Of all {steps:,} steps by averaging the largest distance is "
        f"{averaging['distance_largest'].max():.2f}; opposed would be 2."
    )
    filtering = table[table["under_yoked"].notna()]
    sentences.append("By how much filtering ends with a smaller test loss, in nats a byte.")
    sentences += [
        f"{_COMPOSITIONS[row[PLACE]]}, {row['rule']}: {row['accepted']:.0%} accepted, "
        f"{_with_ends(row, 'under_averaging', '+')} than averaging, "
        f"{_with_ends(row, 'under_yoked', '+')} than its yoked control."
        for row in filtering.to_dict("records")
    ]
    sentences.append(_tally(filtering))
    return " ".join(sentences)


def _tally(filtering: pd.DataFrame) -> str:
    counts = [
        (int((filtering[f"{name}_low"] > 0).sum()), int((filtering[f"{name}_high"] < 0).sum()))
        for name in ("under_averaging", "under_yoked")
    ]
    (better, worse), (better_yoked, worse_yoked) = counts
    return (
        f"Of {len(filtering)} comparisons filtering is better than averaging in {better} and worse "
        f"in {worse}, better than its yoked control in {better_yoked} and worse in {worse_yoked}, "
        "by the 95% interval."
    )


def _with_ends(row: Any, name: str, sign: str = "") -> str:
    mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{mean:{sign}.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def _plan(settings: LanguageSettings) -> Sequence[TrainSettings]:
    return plan_conditions(_conditions(settings), settings.seeds)


LANGUAGE = Analysis(
    name="language",
    question="Are the gradients of a language model opposed, and does filtering help it?",
    presets={
        "quick": LanguageSettings(),
        "gpu": LanguageSettings(
            train=_small_text(
                data_options={"context": "256"},
                model_options={"dim": "384", "depth": "6", "heads": "6", "dropout": "0.1"},
                microbatch_size=24,
                steps=5000,
                lr=0.001,
                validate_every=250,
                device="cuda",
                threads=None,
            )
        ),
    },
    minutes={"quick": "3 minutes on 2 cores", "gpu": "3 hours on one large GPU"},
    measure=measure,
    conclude=conclude,
    plan=_plan,
)
