"""Whether filtering keeps wrong labels out: what it accepts and rejects, over a training.

The paper (arXiv 2412.18052) reads its gains so that micro-gradients of wrong labels disagree and
are rejected. Where true labels are known that can be counted, microbatch by microbatch and sample
by sample, against the share of wrong labels in all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tyro.conf import OmitArgPrefixes

from gafscope.aggregation import GAF
from gafscope.analyses.comparison import interval_columns
from gafscope.analyses.conditions import RULE_NAMES
from gafscope.analyses.presets import all_of_cifar, cifar_part, noisy_digits
from gafscope.analyses.purity import purity
from gafscope.analyses.ranking import frozen_statistics
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.rule_specs import parse_rules
from gafscope.analyses.stage_measures import draw_rows, measure_stages, stage_steps
from gafscope.analyses.trials import Trial, data_name, plan_of, trials_of
from gafscope.calibration import calibrate
from gafscope.errors import UserError
from gafscope.gradients import gramian
from gafscope.trainer import TrainSettings
from gafscope.trainer.job import Job

if TYPE_CHECKING:
    import pandas as pd

MICROBATCHES, SAMPLES = "microbatches", "single samples"
ANY, CLEAN, CORRUPTED = "any", "clean", "corrupted"
_LEAST_ROWS = 16
_SHARES = ("flipped_accepted", "flipped_rejected")
_MEANS = ("flipped_all", "accepted", "stepped", "tau")


@final
@dataclass(frozen=True)
class PurityStudySettings:
    """Count wrong labels in what GAF accepts and rejects, at stages of a training.

    GAF decides on macrobatches drawn from microbatches, or single samples, measured at each stage.
    Its threshold is calibrated there, for each of the two.
    """

    rules: tuple[str, ...] = ("mean", "gaf")
    """Rules to train with, each NAME or NAME:OPTION=VALUE."""
    stages: int = 5
    """Steps at which to count, logarithmically spaced; the untrained network comes first."""
    rows: int = 64
    """Microbatches measured at a stage, of --microbatch-size samples."""
    samples: int = 400
    """Single samples measured at a stage, decided on in macrobatches of --microbatch-size."""
    draws: int = 300
    """Macrobatches drawn from these, about."""
    false_accept: float = 0.05
    """Share of independent gradients that the calibrated threshold lets through."""
    seeds: int = 3
    """Seeds of each rule, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(
        default_factory=lambda: noisy_digits(validate_every=500, record_layers_every=0)
    )
    """How to train; --rule and --rule-options are the study's own."""


@final
@dataclass(frozen=True)
class PurityMeasure:
    """Count at one stage.

    Attributes:
        rows: As in `PurityStudySettings`.
        row_size: Samples in a microbatch.
        microbatches: k, microbatches of a macrobatch.
        samples: As in `PurityStudySettings`.
        draws: As in `PurityStudySettings`.
        false_accept: As in `PurityStudySettings`.
    """

    rows: int
    row_size: int
    microbatches: int
    samples: int
    draws: int
    false_accept: float

    def __call__(self, job: Job, step: int, seed: int, /) -> pd.DataFrame:
        """Give the lines of `purity` for each `level`, with the `tau` that was calibrated."""
        import pandas as pd

        data = job.dataset.train
        if not 0 < int(data.flipped.sum()) < len(data):
            raise UserError(
                "purity counts wrong labels, so some but not all training labels must be known to "
                f"be wrong, but {int(data.flipped.sum())} of {len(data)} are; raise --label-noise."
            )
        microbatches = self._count(job, MICROBATCHES, seed)
        # Single samples have no BatchNorm statistics of their own.
        with frozen_statistics(job.trainer.model):
            return pd.concat([microbatches, self._count(job, SAMPLES, seed)], ignore_index=True)

    def _count(self, job: Job, level: str, seed: int) -> pd.DataFrame:
        data, model, loss = job.dataset.train, job.trainer.model, job.trainer.loss
        single = level == SAMPLES
        size, rows = (1, self.samples) if single else (self.row_size, self.rows)
        drawn = draw_rows(data, rows, size, seed)
        gram = gramian(model, loss, data.batch(drawn), rows, layers=False, seed=seed)
        shares = data.flipped.cpu()[drawn].double().view(rows, size).mean(1)
        tau = calibrate(
            model,
            loss,
            data.batch(),
            microbatch_size=size,
            false_accept=self.false_accept,
            seed=seed,
        ).tau
        group = self.row_size if single else self.microbatches
        counted = purity(gram, shares, GAF(tau), microbatches=group, draws=self.draws, seed=seed)
        name = SAMPLES if single else f"{MICROBATCHES} of {size}"
        ends = [column for column in counted if str(column).endswith(("_low", "_high"))]
        return counted.drop(columns=ends).assign(level=name, tau=tau)


def measure(settings: PurityStudySettings) -> Measured:
    """Train and count, or go on with it stage by stage.

    Args:
        settings: The settings.

    Returns:
        One row a rule, seed, stage, level and kind of first row. There are no curves beside.

    Raises:
        UserError: If a setting is wrong, no label is known to be wrong, or the folder holds
            measurements with other settings.
    """
    import pandas as pd

    root = Path(settings.train.run_dir or "runs/purity")
    measuring, stages, trials = _plan(settings)
    parts = [
        part.assign(data=trial.data, rule=trial.rule, seed=trial.seed)
        for trial in trials
        for part in measure_stages(trial, measuring, stages, root)
    ]
    runs = pd.concat(parts, ignore_index=True)
    keys = ["data", "rule", "seed", "step", "level", "first"]
    runs = runs[keys + [name for name in runs if name not in keys]]
    return Measured(runs, runs[["data", "rule", "seed", "step"]].drop_duplicates(), root)


def conclude(settings: PurityStudySettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds and compare with the share of wrong labels in all.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        One row a rule, level, stage and kind of first row: the share of flipped samples among what
        is accepted and rejected, and `purer`, how many points purer what is accepted is than all of
        it, with intervals over the seeds.
    """
    import pandas as pd

    rows = []
    keys = ["data", "rule", "level", "first", "step"]
    for key, group in runs.groupby(keys, sort=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        row |= {"seeds": len(group)}
        for name in _SHARES:
            row |= interval_columns(name, group[name].dropna().tolist())
        purer = 100 * (group["flipped_all"] - group["flipped_accepted"])
        row |= interval_columns("purer", purer.dropna().tolist())
        rows.append(row | {name: group[name].mean() for name in _MEANS})
    table = pd.DataFrame(rows)
    whole = table["data"] + ", trained by " + table["rule"] + ": " + table["level"]
    verdict = _verdict(table)
    shown = ("first", "step", *_SHARES, "purer", *_MEANS)
    return Conclusion(table.assign(data=whole, of=table["data"]), verdict, shown)


def _plan(settings: PurityStudySettings) -> tuple[PurityMeasure, list[int], list[Trial]]:
    train = settings.train
    if isinstance(train.microbatches, str) or train.microbatches < 2:
        raise UserError(
            "purity lets GAF decide on macrobatches, so microbatches must be 2 or more, but is "
            f"{train.microbatches}."
        )
    if train.microbatch_size < 2:
        raise UserError(
            "Single samples are decided on in macrobatches of microbatch_size, which must be 2 or "
            f"more, but is {train.microbatch_size}."
        )
    least = {
        "rows": max(_LEAST_ROWS, train.microbatches),
        "samples": max(_LEAST_ROWS, train.microbatch_size),
        "draws": 1,
        "seeds": 1,
    }
    for name, low in least.items():
        if getattr(settings, name) < low:
            raise UserError(
                f"{name} must be at least {low}, but is {getattr(settings, name)}; raise it."
            )
    measuring = PurityMeasure(
        settings.rows,
        train.microbatch_size,
        train.microbatches,
        settings.samples,
        settings.draws,
        settings.false_accept,
    )
    rules: dict[str, TrainSettings] = {}
    for spec in parse_rules(settings.rules):
        spec.build(train.tau)
        rules[RULE_NAMES.get(spec.label, spec.label)] = spec.settings(train)
    stages = stage_steps(train.steps, settings.stages)
    return measuring, stages, trials_of(data_name(train), rules, settings.seeds)


def _verdict(table: pd.DataFrame) -> str:
    sentences = [
        "Share of wrong labels in what GAF at its calibrated tau accepts, mean over the seeds, and "
        "how many points purer that is than all of it, with 95% intervals."
    ]
    for (rule, level), part in table.groupby(["rule", "level"], sort=False):
        last = part[part["step"] == part["step"].max()].set_index("first")
        told = [
            f"{words}{last.loc[first, 'flipped_accepted']:.1%} ({_purer(last.loc[first])})"
            for first, words in (
                (ANY, ""),
                (CLEAN, "after a first one purer than the mean "),
                (CORRUPTED, "after a worse one "),
            )
            if first in last.index and not math.isnan(last.loc[first, "flipped_accepted"])
        ]
        whole = part[(part["first"] == ANY) & (part["step"] > 0)]
        sentences.append(
            f"Trained by {rule}, {level}, after {part['step'].max()} steps, of "
            f"{last.loc[ANY, 'flipped_all']:.1%} in all: {', '.join(told)}; over the stages after "
            f"the first step what is accepted is {_signed(whole['purer'].min())} to "
            f"{_signed(whole['purer'].max())} points purer on average."
        )
    return " ".join(sentences)


def _purer(row: Any) -> str:
    low, high = row["purer_low"], row["purer_high"]
    ends = "" if math.isnan(low) else f" [{low:.1f}, {high:.1f}]"
    return f"{_signed(row['purer'])}{ends}"


def _signed(points: float) -> str:
    # Adding 0 makes a rounded -0.0 a plain 0.
    return f"{round(points, 1) + 0.0:+.1f}"


def _cifar(settings: TrainSettings) -> PurityStudySettings:
    train = replace(settings, record_layers_every=0)
    return PurityStudySettings(samples=1000, train=train)


PURITY = Analysis(
    name="purity",
    question="Does filtering keep wrong labels out, by microbatch and by sample?",
    presets={
        "quick": PurityStudySettings(),
        "cifar": _cifar(cifar_part()),
        "gpu": _cifar(all_of_cifar()),
    },
    minutes={
        "quick": "2 minutes on 2 cores",
        "cifar": "2 hours on 2 cores",
        "gpu": "40 minutes on one large GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_of(_plan(settings)[2]),
)
