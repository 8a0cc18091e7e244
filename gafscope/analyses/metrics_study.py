"""All metrics over a training run: against each other, and against wrong labels.

At logarithmically spaced steps of the same training, by plain averaging and by GAF, every metric
is measured on k microbatches of the training data, the same ones at each stage, and single samples
are scored by how far their gradients are from the others'. How well a score tells flipped labels
from true ones is its AUROC: the probability that a flipped label scores above a true one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.metrics_tables import (
    correlations,
    metric_table,
    metrics_verdict,
    score_table,
    stage_table,
)
from gafscope.analyses.presets import noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.rule_specs import parse_rules
from gafscope.analyses.stage_measures import METRIC, SCORE, Measuring, measure_stages, stage_steps
from gafscope.analyses.trials import Trial, data_name, plan_of, trials_of
from gafscope.errors import UserError
from gafscope.records import atomic_write
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd


def _settings() -> TrainSettings:
    return noisy_digits(validate_every=100, record_layers_every=0)


@final
@dataclass(frozen=True)
class MetricsSettings:
    """Measure all metrics at stages of training, and compare them."""

    rules: tuple[str, ...] = ("mean", "gaf")
    """Rules to train with, each NAME or NAME:OPTION=VALUE,OPTION=VALUE."""
    stages: int = 12
    """Steps at which to measure, logarithmically spaced; the untrained network comes first."""
    rows: int = 32
    """Microbatches that the metrics are measured on."""
    row_size: int = 20
    """Samples in each of these."""
    samples: int = 500
    """Training samples that are scored one by one."""
    seeds: int = 3
    """Seeds of each rule, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=_settings)
    """How to train; --rule and --rule-options are the study's own."""


def measure(settings: MetricsSettings) -> Measured:
    """Train and measure, or go on with it stage by stage.

    Args:
        settings: The settings.

    Returns:
        Metrics and scores of each rule, seed and stage; as curves beside the metrics' correlations.

    Raises:
        UserError: If a setting is wrong, or the folder holds measurements with others.
    """
    import pandas as pd

    measuring = Measuring(settings.rows, settings.row_size, settings.samples)
    measuring.check()
    stages = stage_steps(settings.train.steps, settings.stages)
    root = Path(settings.train.run_dir or "runs/metrics")
    parts = [
        part.assign(data=trial.data, rule=trial.rule, seed=trial.seed)
        for trial in _trials(settings)
        for part in measure_stages(trial, measuring, stages, root)
    ]
    found = pd.concat(parts, ignore_index=True)
    related = correlations(found[found["kind"] == METRIC])
    _write({"stages": stage_table(found), "correlations": related}, root)
    curves = pd.concat([found, related.assign(kind="correlation")], ignore_index=True)
    return Measured(found, curves, root)


def conclude(settings: MetricsSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds and compare.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        For each rule the metrics at three stages and what each ranks like, and the scores' AUROC.
    """
    import pandas as pd

    metrics, scores = (runs[runs["kind"] == kind] for kind in (METRIC, SCORE))
    by_stage, related = stage_table(runs), correlations(metrics)
    tables = [metric_table(by_stage[by_stage["kind"] == METRIC], related), score_table(scores)]
    table = pd.concat([part for part in tables if len(part)], ignore_index=True)
    return Conclusion(table, metrics_verdict(related, metrics, scores))


def _trials(settings: MetricsSettings) -> list[Trial]:
    base = settings.train
    if settings.seeds < 1:
        raise UserError(f"seeds must be at least 1, but is {settings.seeds}.")
    rules: dict[str, TrainSettings] = {}
    for spec in parse_rules(settings.rules):
        spec.build(base.tau)
        rules[{"mean": "averaging", "gaf": "GAF"}.get(spec.label, spec.label)] = spec.settings(base)
    return trials_of(data_name(base), rules, settings.seeds)


def _write(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    for name, table in tables.items():
        with atomic_write(folder / f"{name}.csv") as file:
            file.write(table.to_csv(index=False).encode())


METRICS_STUDY = Analysis(
    name="metrics",
    question="Which metrics say the same, and which score finds wrong labels best?",
    presets={"quick": MetricsSettings(), "full": MetricsSettings(seeds=8)},
    minutes={"quick": "2 minutes on 2 cores", "full": "5 minutes on 2 cores"},
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_of(_trials(settings)),
)
