"""Rules against each other, each beside its yoked control.

Twice: at equal samples, where every rule sees the same number of macrobatches, and at equal
updates, where every rule sees as many macrobatches as it needs for the same number of updates.
The yoked control averages fresh microbatches and steps exactly when its rule stepped. For a run
that stepped every time that is averaging of fresh microbatches, which is trained once and shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.presets import noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.rule_specs import RuleSpec, parse_rules
from gafscope.analyses.rules_verdict import AVERAGING, SAMPLES, UPDATES, verdict
from gafscope.analyses.trials import (
    Trial,
    curves_of,
    data_name,
    ends_of,
    plan_of,
    run_trials,
    trials_of,
    yoked_control,
)
from gafscope.errors import UserError
from gafscope.records import Run
from gafscope.sweep.intervals import over_seeds
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

FRESH = "averaging, fresh microbatches"
_COLUMNS = ("test_accuracy", "points_over_averaging", "points_over_control")
_MEANS = ("best_test_accuracy", "train_accuracy", "accepted", "updates", "steps")
_RULES = (
    "gaf",
    "gaf:anchor=best",
    "clique-gaf:tau=0.9",
    "leave-one-out",
    "soft-gaf",
    "calibrated-gaf",
    "adaptive-gaf",
    "sign-agreement",
    "trimmed-mean",
    "multi-krum",
)


def _settings() -> TrainSettings:
    return noisy_digits(
        tau=0.8, microbatches=8, microbatch_size=10, steps=400, lr=0.1, record_layers_every=0
    )


@final
@dataclass(frozen=True)
class RulesSettings:
    """Compare rules at equal samples and at equal updates, each beside its yoked control.

    --tau is for the rules that take one and are not given their own in --rules.
    """

    rules: tuple[str, ...] = _RULES
    """Rules, each NAME or NAME:OPTION=VALUE,OPTION=VALUE. Averaging is always there."""
    updates: int | None = None
    """Updates of each rule in the comparison at equal updates; half the steps when not given."""
    patience_factor: int = 3
    """There a rule sees at most so many times --steps macrobatches."""
    seeds: int = 3
    """Seeds of each rule, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=_settings)
    """How to train; --rule and --rule-options are the study's own."""


def measure(settings: RulesSettings) -> Measured:
    """Train, or go on with it.

    Args:
        settings: The settings.

    Returns:
        The run of each comparison, rule and seed, with what its control came to.

    Raises:
        UserError: If a rule is unknown or a setting wrong.
    """
    import pandas as pd

    specs = _check(settings)
    root = Path(settings.train.run_dir or "runs/rules")
    trials, runs, ends = [], [], []
    for comparison, base in _comparisons(settings).items():
        part = _rule_trials(comparison, base, specs, settings.seeds)
        part_runs = run_trials(part, root)
        controls = _controls(part, part_runs, root)
        distinct = {control.folder(root): control for control in controls}
        found = dict(zip(distinct, run_trials(list(distinct.values()), root), strict=True))
        beside = [found[control.folder(root)] for control in controls]
        ends.append(_ends(part, part_runs, beside))
        trials += [*part, *distinct.values()]
        runs += [*part_runs, *found.values()]
    curves = curves_of(trials, runs)
    # The figure shows validations alone; the first step tells what was trained on without any.
    drawn = curves["validation_accuracy"].notna() | (curves["step"] == 0)
    return Measured(pd.concat(ends, ignore_index=True), curves[drawn], root)


def conclude(settings: RulesSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds and compare.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        For each comparison and rule the accuracies, and their paired differences to averaging and
        to the rule's own control.
    """
    means = ("control_accuracy", *_MEANS, "norm_over_control")
    table = over_seeds(runs, ("data", "rule"), _COLUMNS, means)
    return Conclusion(table, verdict(table, settings.train.tau))


def _plan(settings: RulesSettings) -> list[TrainSettings]:
    specs = _check(settings)
    parts = [
        _rule_trials(comparison, base, specs, settings.seeds)
        for comparison, base in _comparisons(settings).items()
    ]
    # Each has a control; some share one.
    return plan_of([trial for part in parts for trial in [*part, *part]])


def _check(settings: RulesSettings) -> list[RuleSpec]:
    """Refuse before the first run what the last one would stumble over."""
    if settings.updates is not None and not 1 <= settings.updates <= settings.train.steps:
        raise UserError(
            f"updates must lie between 1 and steps={settings.train.steps}, the updates that "
            f"averaging makes, but is {settings.updates}."
        )
    for name in ("patience_factor", "seeds"):
        if getattr(settings, name) < 1:
            raise UserError(f"{name} must be at least 1, but is {getattr(settings, name)}.")
    specs = [spec for spec in parse_rules(settings.rules) if spec.name != "mean"]
    for spec in specs:
        spec.build(settings.train.tau)
    return specs


def _comparisons(settings: RulesSettings) -> dict[str, TrainSettings]:
    """Give the settings of the two comparisons, by the name of each."""
    base = settings.train
    data = data_name(base)
    updates = settings.updates or max(1, base.steps // 2)
    longer = replace(
        base, max_updates=updates, steps=settings.patience_factor * base.steps, on_stall="stop"
    )
    return {
        f"{data}, {SAMPLES} ({base.steps} macrobatches)": base,
        f"{data}, {UPDATES} ({updates})": longer,
    }


def _rule_trials(
    data: str, base: TrainSettings, specs: Sequence[RuleSpec], seeds: int
) -> list[Trial]:
    rules = {AVERAGING: replace(base, rule="mean", rule_options=None)}
    rules |= {spec.label: spec.settings(base) for spec in specs}
    return trials_of(data, rules, seeds)


def _controls(trials: Sequence[Trial], runs: Sequence[Run], root: Path) -> list[Trial]:
    """Give the control of each trial; trials that made every step of theirs share one."""
    controls = []
    for trial, run in zip(trials, runs, strict=True):
        steps = run.summary["steps"]
        control = yoked_control(trial, root, f"yoked to {trial.rule}")
        settings = replace(control.settings, steps=steps, max_updates=None)
        if run.summary["updates"] == steps:
            control = replace(control, rule=FRESH)
            settings = replace(settings, yoked_to=None)
        controls.append(replace(control, settings=settings))
    return controls


def _ends(trials: Sequence[Trial], runs: Sequence[Run], controls: Sequence[Run]) -> pd.DataFrame:
    """Collect the ends of one comparison's runs, each beside its control's."""
    ends = ends_of(trials, runs)
    ends["control_accuracy"] = [control.summary["test_accuracy"] for control in controls]
    ends["norm_over_control"] = [
        run.scalars["grad_norm"].mean() / control.scalars["grad_norm"].mean()
        for run, control in zip(runs, controls, strict=True)
    ]
    averaging = ends[ends["rule"] == AVERAGING].set_index("seed")["test_accuracy"]
    gain = 100 * (ends["test_accuracy"] - ends["seed"].map(averaging))
    ends["points_over_averaging"] = gain.where(ends["rule"] != AVERAGING)
    ends["points_over_control"] = 100 * (ends["test_accuracy"] - ends["control_accuracy"])
    return ends


RULES_STUDY = Analysis(
    name="rules",
    question="Which rule gains over averaging and over its own control, and at what price?",
    presets={
        "quick": RulesSettings(),
        "full": RulesSettings(seeds=8),
    },
    minutes={"quick": "3 minutes on 2 cores", "full": "8 minutes on 2 cores"},
    measure=measure,
    conclude=conclude,
    plan=_plan,
)
