"""Trainings under several conditions, rules beside averaging and beside their controls.

A condition is a place (a noise level, a threshold, a size ...) and a rule. Three controls stand
beside a rule that filters, each averaging plainly: *yoked*, on fresh microbatches, stepping exactly
when the rule stepped; *same updates*, stopped after as many updates; *random skip*, on fresh
microbatches, skipping the same share of the updates at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from gafscope.analyses.result import Measured
from gafscope.analyses.trials import (
    FRESH,
    Trial,
    curves_of,
    ends_of,
    plan_of,
    run_trials,
    yoked_control,
)
from gafscope.errors import UserError
from gafscope.records import Run
from gafscope.trainer import TrainSettings
from gafscope.trainer.options import make_rule

if TYPE_CHECKING:
    pass

AVERAGING, GAF = "averaging", "GAF"
RULE_NAMES = {"mean": AVERAGING, "gaf": GAF}
"""Rules that people call otherwise than the command line does."""
YOKED, SAME_UPDATES, RANDOM_SKIP = "yoked control", "same updates", "random skip"
CONTROLS = (YOKED, SAME_UPDATES, RANDOM_SKIP)
# A study has many runs, so each keeps few points.
_POINTS = 100


@final
@dataclass(frozen=True)
class Condition:
    """One point of a study.

    Attributes:
        data: What it trains on, for people.
        rule: What it trains with, for people.
        settings: The settings, with the first seed.
        place: Where the point lies: (name of the column, its value), e.g. ("noise", 0.4). None
            holds for all places.
        controls: Names of the controls that stand beside it.
    """

    data: str
    rule: str
    settings: TrainSettings
    place: tuple[str, Any] | None = None
    controls: tuple[str, ...] = ()

    def trials(self, seeds: int) -> list[Trial]:
        """Give its trials, one a seed."""
        first = self.settings.seed
        return [
            Trial(self._data, self.rule, seed, replace(self.settings, seed=seed))
            for seed in range(first, first + seeds)
        ]

    @property
    def _data(self) -> str:
        if self.place is None:
            return self.data
        name, value = self.place
        return f"{self.data}, {name} {f'{value:g}' if isinstance(value, float) else value}"


def measure_conditions(
    conditions: Sequence[Condition],
    seeds: int,
    root: Path,
    curves_at: Any = None,
    more: Callable[[Run], Mapping[str, Any]] | None = None,
) -> Measured:
    """Train every condition and its controls, or go on with it.

    Args:
        conditions: The conditions.
        seeds: Seeds of each.
        root: The folder that holds the runs'.
        curves_at: Keep the curves of this value of the place alone; None keeps all.
        more: A run -> further columns of its row.

    Returns:
        One run a condition, control and seed: the columns of `ends_of`, with the place's.

    Raises:
        UserError: If there are no seeds, or a rule refuses its settings; nothing is trained then.
    """
    import pandas as pd

    check_conditions(conditions, seeds)
    owners = [condition for condition in conditions for _ in range(seeds)]
    trials = [trial for condition in conditions for trial in condition.trials(seeds)]
    runs = run_trials(trials, root)
    planned = [
        (owner, control)
        for owner, trial, run in zip(owners, trials, runs, strict=True)
        for control in control_trials(owner.controls, trial, run, root)
    ]
    controls = [trial for _, trial in planned]
    runs += run_trials(controls, root)
    owners += [owner for owner, _ in planned]
    trials += controls
    # Each condition is followed by its controls.
    order = sorted(range(len(trials)), key=lambda i: conditions.index(owners[i]))
    owners, trials = [owners[i] for i in order], [trials[i] for i in order]
    runs = [runs[i] for i in order]
    ends = ends_of(trials, runs).assign(data=[owner.data for owner in owners])
    kept = [
        i
        for i, owner in enumerate(owners)
        if curves_at is None or owner.place is None or owner.place[1] == curves_at
    ]
    curves = curves_of([trials[i] for i in kept], [runs[i] for i in kept], _POINTS)
    if more is not None:
        extra = pd.DataFrame([dict(more(run)) for run in runs], index=ends.index)
        ends = ends.assign(**{str(name): extra[name] for name in extra})
    for name in {owner.place[0]: None for owner in owners if owner.place is not None}:
        values = [owner.place[1] if owner.place is not None else None for owner in owners]
        ends.insert(1, name, pd.Series(values, index=ends.index))
    return Measured(ends, curves, root)


def check_conditions(conditions: Sequence[Condition], seeds: int) -> None:
    """Refuse what no training would take, before the first one starts.

    Args:
        conditions: The conditions.
        seeds: Seeds of each.

    Raises:
        UserError: If there are no seeds, or a rule refuses its settings.
    """
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, but is {seeds}; raise it.")
    for condition in conditions:
        make_rule(condition.settings)


def plan_conditions(conditions: Sequence[Condition], seeds: int) -> list[TrainSettings]:
    """Give the trainings that `measure_conditions` will make.

    Args:
        conditions: The conditions.
        seeds: Seeds of each.
    """
    return [
        settings
        for condition in conditions
        for settings in plan_of(condition.trials(seeds)) * (1 + len(condition.controls))
    ]


def control_trials(names: Sequence[str], trial: Trial, run: Run, root: Path) -> list[Trial]:
    """Make the controls of a trial that has run.

    Args:
        names: Which; of `CONTROLS`.
        trial: The trial.
        run: Its run.
        root: The folder that holds the runs'.
    """
    updates, steps = run.summary["updates"], run.summary["steps"]
    plain = replace(trial.settings, rule="mean", tau=None, rule_options=None)
    fresh = replace(plain, sampling_seed=trial.seed + FRESH)
    made = {
        # A run has at least one update; beside a rule that never stepped that is one too many.
        SAME_UPDATES: replace(plain, max_updates=max(updates, 1)),
        RANDOM_SKIP: replace(fresh, skip_rate=1 - updates / steps),
    }
    return [
        yoked_control(trial, root, control_name(YOKED, trial.rule))
        if name == YOKED
        else Trial(trial.data, control_name(name, trial.rule), trial.seed, made[name])
        for name in names
    ]


def control_name(control: str, rule: str) -> str:
    """Name a control; that of GAF itself needs no more than its kind.

    Args:
        control: One of `CONTROLS`.
        rule: The rule that it is a control of.
    """
    return control if rule == GAF else f"{control} of {rule}"


def plain_averaging(settings: TrainSettings) -> TrainSettings:
    """Give the settings of plain averaging of the same microbatches.

    Args:
        settings: Those of a rule.
    """
    return replace(settings, rule="mean", tau=None, rule_options=None, warmup_updates=0)
