"""How much the visiting order decides: where the running sum starts, and on what.

Algorithm 1 of arXiv 2412.18052 starts at the first micro-gradient and compares the others with it.
If that one comes from wrong labels, what agrees with it is accepted. Here one microbatch of each
macrobatch holds wrong labels alone and stands first or last, and the sum starts at the first row,
at a random one, at the one with the largest or at the one with the smallest agreement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
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
from gafscope.errors import UserError
from gafscope.records import Run
from gafscope.sweep.intervals import paired_difference
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

PLACE = "flipped"
_BALANCES = {"first": "first-flipped", "last": "last-flipped", "anywhere": "iid"}
"""Where the wrong labels are -> how microbatches are composed."""
_FLIPPED, _CLEAN = "flipped_accepted", "clean_accepted"


def _quick() -> TrainSettings:
    return noisy_digits(
        microbatches=4, label_noise=0.25, steps=500, validate_every=25, record_layers_every=0
    )


@final
@dataclass(frozen=True)
class OrderSettings:
    """Train by GAF from each anchor, with a microbatch of wrong labels first or last.

    Beside each stands its yoked control, which averages fresh microbatches of the same composition
    and steps exactly when the rule stepped.
    """

    flipped: tuple[str, ...] = ("first", "last", "anywhere")
    """Where the wrong labels are: all in the first microbatch, all in the last, or anywhere."""
    anchors: tuple[str, ...] = ("first", "random", "best", "worst")
    """Where the running sum of GAF starts."""
    seeds: int = 3
    """Seeds of each condition, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=_quick)
    """How to train; --label-noise near 1 / --microbatches uses all samples alike. --balance,
    --rule and --rule-options are the study's own."""


def measure(settings: OrderSettings) -> Measured:
    """Train by each rule, or go on with it.

    Args:
        settings: The settings.

    Returns:
        One run a place of the wrong labels, rule or control, and seed, with the share of the
        flipped and of the clean microbatches that the rule accepted.

    Raises:
        UserError: If a setting is wrong.
    """
    root = Path(settings.train.run_dir or "runs/order")
    conditions = _conditions(settings)
    shown = settings.flipped[0]
    return measure_conditions(conditions, settings.seeds, root, curves_at=shown, more=_accepted)


def conclude(settings: OrderSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds, and compare the anchors with the first row and the controls.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        Accuracies by place of the wrong labels and rule, with paired differences to averaging and
        the controls, and the accepted shares.
    """
    means = [name for name in (_FLIPPED, _CLEAN) if name in runs]
    table = compare(runs, PLACE, means=means)
    return Conclusion(table, _verdict(runs, table), (PLACE, *SHOWN, *means))


def _conditions(settings: OrderSettings) -> list[Condition]:
    train = settings.train
    check_validated(train)
    k = train.microbatches
    if isinstance(k, str) or k < 3:
        raise UserError(
            f"The order of the rows matters from 3 microbatches on, but microbatches is {k}; use 4 "
            "or more."
        )
    for place in settings.flipped:
        if place not in _BALANCES:
            raise UserError(
                f"flipped says where the wrong labels are, {', '.join(_BALANCES)}, but '{place}' "
                "is among them."
            )
    conditions = []
    for place in dict.fromkeys(settings.flipped):
        base = replace(train, balance=_BALANCES[place], rule="gaf", rule_options=None)
        mean = plain_averaging(base)
        add = partial(Condition, base.data, place=(PLACE, place))
        conditions.append(add(AVERAGING, mean))
        for anchor in dict.fromkeys(settings.anchors):
            own = replace(base, rule_options=None if anchor == "first" else {"anchor": anchor})
            name = GAF if anchor == "first" else f"GAF, anchor {anchor}"
            conditions.append(add(name, own, controls=(YOKED,)))
    return conditions


def _accepted(run: Run) -> Mapping[str, float]:
    """Give the shares of flipped and of clean microbatches that a run of GAF accepted."""
    places = {balance: 0 if place == "first" else -1 for place, balance in _BALANCES.items()}
    balance, tau = run.config["balance"], run.config["tau"]
    if run.config["rule"] != "gaf" or balance == _BALANCES["anywhere"]:
        return {}
    distances = np.array(run.scalars["distance_to_sum"].tolist(), dtype=float)
    # The row that the sum starts at has no distance.
    accepted = (np.isnan(distances) | (distances <= tau)) & run.scalars["stepped"].to_numpy()[
        :, None
    ]
    flipped = accepted[:, places[balance]].mean()
    k = accepted.shape[1]
    return {_FLIPPED: flipped, _CLEAN: (accepted.mean() * k - flipped) / (k - 1)}


def _verdict(runs: pd.DataFrame, table: pd.DataFrame) -> str:
    sentences = ["Leads in test accuracy at the end, in points, paired by seed, 95% intervals."]
    for place, own in table.groupby(PLACE, sort=False):
        where = "anywhere" if place == "anywhere" else f"in the {place} microbatch"
        for row in own[own["over_yoked"].notna()].to_dict("records"):
            shares = (
                f"{row[_FLIPPED]:.0%} of the flipped and {row[_CLEAN]:.0%} of the clean ones "
                "accepted, "
                if not math.isnan(row.get(_FLIPPED, math.nan))
                else f"{row['accepted']:.0%} accepted, "
            )
            sentences.append(
                f"Wrong labels {where}, {row['rule']}: {shares}"
                f"{points(row, 'over_averaging')} over averaging, "
                f"{points(row, 'over_yoked')} over its yoked control."
            )
        sentences += _against_first(runs[runs[PLACE] == place], own)
    sentences += [tally(table), behind_best_checkpoint(table, PLACE, (AVERAGING, YOKED))]
    return " ".join(sentences)


def _against_first(runs: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    rules = table[table["over_yoked"].notna()]["rule"].tolist()
    if GAF not in rules:
        return []
    leads = {
        rule.removeprefix("GAF, "): paired_difference(runs, "test_accuracy", rule, GAF)
        for rule in rules
        if rule != GAF
    }
    told = ", ".join(f"{name} {lead.percent()}" for name, lead in leads.items())
    return [f"Against GAF from the first row: {told}."] if leads else []


ORDER = Analysis(
    name="order",
    question="How much does the visiting order decide, and what if the first row is wrong?",
    presets={
        "quick": OrderSettings(),
        "cifar": OrderSettings(
            train=cifar_part(microbatches=4, label_noise=0.25, balance="iid", steps=1000)
        ),
        "gpu": OrderSettings(train=all_of_cifar(microbatches=4, label_noise=0.25, balance="iid")),
    },
    minutes={
        "quick": "3 minutes on 2 cores",
        "cifar": "14 hours on 2 cores",
        "gpu": "12 hours on one large GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_conditions(_conditions(settings), settings.seeds),
)
