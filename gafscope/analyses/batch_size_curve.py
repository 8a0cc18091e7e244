"""How agreement grows with the microbatch, and if one Gramian tells (arXiv 2412.18052, Fig. 4).

At stages of a training the cosine distance of two disjoint microbatches is measured at each size u
and predicted from the Gramian of microbatches of one size alone, `E cos = 1 / (1 + B / u)`; the
noise scale B_simple is followed over the whole training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from tyro.conf import OmitArgPrefixes

from gafscope.analyses.comparison import interval_columns
from gafscope.analyses.conditions import RULE_NAMES
from gafscope.analyses.curve_measure import DISTANCE, NOISE_SCALE, CurveMeasure
from gafscope.analyses.presets import all_of_cifar, as_published, cifar_part, noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.stage_measures import measure_stages, stage_steps
from gafscope.analyses.trials import Trial, data_name, plan_of, trials_of
from gafscope.errors import UserError
from gafscope.sweep.intervals import mean_interval
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

_LEAST_ROWS = 8


def _quick() -> TrainSettings:
    return noisy_digits(rule="mean", tau=None, validate_every=500, record_layers_every=0)


@final
@dataclass(frozen=True)
class BatchSizeCurveSettings:
    """Measure how the distance of two microbatches falls as they grow, and predict it.

    The prediction knows microbatches of one size only. It is refused where their mean gradient
    cannot be told from zero.
    """

    sizes: tuple[int, ...] = (5, 10, 20, 50, 100, 200, 400)
    """Microbatch sizes to measure and predict at, in samples."""
    pairs: int = 200
    """Pairs of disjoint microbatches that each measured mean distance averages, at least."""
    rows: int = 64
    """Microbatches that the prediction and the noise scale are made from."""
    row_size: int = 20
    """Samples in each of these."""
    stages: tuple[int, ...] = (100, 500, 1500)
    """Steps after which the curve is measured."""
    noise_stages: int = 12
    """Further steps at which the noise scale is measured, logarithmically spaced from 1."""
    seeds: int = 4
    """Seeds, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=_quick)
    """How to train; --balance also says how the measured microbatches are composed."""


def measure(settings: BatchSizeCurveSettings) -> Measured:
    """Train and measure, or go on with it stage by stage.

    Args:
        settings: The settings.

    Returns:
        One row a seed, stage and size, and one a seed and stage for the noise scale; the curves
        are the latter.

    Raises:
        UserError: If a setting is wrong, or the folder holds measurements with others.
    """
    import pandas as pd

    root = Path(settings.train.run_dir or "runs/batch-size-curve")
    measuring, stages, trials = _plan(settings)
    parts = [
        part.assign(data=trial.data, rule=trial.rule, seed=trial.seed)
        for trial in trials
        for part in measure_stages(trial, measuring, stages, root)
    ]
    runs = pd.concat(parts, ignore_index=True)
    runs["refused"] = runs["refused"].notna() & (runs["refused"] != "")
    order = ["data", "rule", "seed", "step", "kind", "u", "measured", "predicted", "low", "high"]
    runs = runs[[*order, "refused"]]
    scales = runs[runs["kind"] == NOISE_SCALE].drop(columns=["u", "measured"])
    return Measured(runs, scales, root)


def conclude(
    settings: BatchSizeCurveSettings, runs: pd.DataFrame, curves: pd.DataFrame
) -> Conclusion:
    """Average over the seeds and compare prediction and measurement.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        One row a stage and size, and one a stage for the noise scale, whose mean over the seeds is
        geometric. `refused` counts the seeds without a prediction, `error` is that of the mean
        prediction, `largest_error` that of the worst seed.
    """
    import pandas as pd

    rows = []
    for (data, kind, step, u), group in runs.groupby(
        ["data", "kind", "step", "u"], sort=False, dropna=False
    ):
        known = group[~group["refused"]]
        row: dict[str, Any] = {"data": data, "kind": kind, "step": step, "u": u}
        row |= {"seeds": len(group), "refused": len(group) - len(known)}
        if kind == NOISE_SCALE:
            logs = np.log(known["predicted"]).tolist()
            row |= {name: math.exp(v) for name, v in interval_columns("noise_scale", logs).items()}
        else:
            errors = known["predicted"] - known["measured"]
            row |= interval_columns("measured", group["measured"].tolist())
            row |= interval_columns("predicted", known["predicted"].tolist())
            row |= {"error": errors.mean(), "largest_error": errors.abs().max()}
        rows.append(row)
    table = pd.DataFrame(rows).sort_values(["kind", "step", "u"], ignore_index=True)
    return Conclusion(table, _verdict(table, runs))


def _plan(settings: BatchSizeCurveSettings) -> tuple[CurveMeasure, list[int], list[Trial]]:
    train, last = settings.train, settings.train.steps
    for name, least in (("rows", _LEAST_ROWS), ("row_size", 1), ("pairs", 1), ("seeds", 1)):
        value = getattr(settings, name)
        if value < least:
            raise UserError(f"{name} must be at least {least}, but is {value}; raise it.")
    if not settings.sizes or min(settings.sizes) < 1:
        raise UserError(
            f"sizes counts samples, one or more each, but is {list(settings.sizes)}; give the "
            "microbatch sizes to measure, e.g. --sizes 10 100."
        )
    if not settings.stages or not all(0 < stage <= last for stage in settings.stages):
        raise UserError(
            f"stages are steps from 1 to --steps, {last}, but are {list(settings.stages)}; lower "
            "them or make more steps."
        )
    measuring = CurveMeasure(
        settings.sizes,
        settings.pairs,
        settings.rows,
        settings.row_size,
        settings.stages,
        train.balance,
    )
    stages = sorted({*stage_steps(last, settings.noise_stages), *settings.stages})
    rule = RULE_NAMES.get(train.rule, train.rule)
    return measuring, stages, trials_of(data_name(train), {rule: train}, settings.seeds)


def _verdict(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    distances = table[table["kind"] == DISTANCE]
    measured = runs[runs["kind"] == DISTANCE]
    sentences = ["Mean cosine distance of two disjoint microbatches, 95% intervals over seeds."]
    for step, part in distances.groupby("step"):
        first, last = part.iloc[0], part.iloc[-1]
        wide = measured[measured["step"] == step].pivot(index="seed", columns="u")["measured"]
        fall = mean_interval((wide[first["u"]] - wide[last["u"]]).tolist())
        clear = ", which is not told apart from no fall" if fall.low <= 0 else ""
        sentences.append(
            f"After {step} steps it is {_with_ends(first, 'measured')} at u = {first['u']:.0f} and "
            f"{_with_ends(last, 'measured')} at u = {last['u']:.0f}{clear}."
        )
    sentences += _on_prediction(measured)
    scales = table[table["kind"] == NOISE_SCALE].dropna(subset=["noise_scale"])
    if len(scales):
        largest = scales.sort_values("noise_scale").iloc[-1]
        first, high, last = (
            f"{_with_ends(row, 'noise_scale', '.0f')} samples after {row['step']:.0f} steps"
            for row in (scales.iloc[0], largest, scales.iloc[-1])
        )
        sentences.append(
            f"The noise scale goes from {first} to {last}; its largest mean is {high}."
        )
    return " ".join(sentences)


def _on_prediction(measured: pd.DataFrame) -> list[str]:
    known = measured[~measured["refused"]]
    stages = measured.drop_duplicates(["seed", "step"])
    sentence = (
        f"Of {len(stages)} predictions of a curve from one Gramian {int(stages['refused'].sum())} "
        "are refused, as the mean gradient there cannot be told from zero"
    )
    if known.empty:
        return [f"{sentence}."]
    errors = (known["predicted"] - known["measured"]).abs()
    inside = ((known["low"] <= known["measured"]) & (known["measured"] <= known["high"])).mean()
    return [
        f"{sentence}; the others are off by {errors.mean():.3f} on average and {errors.max():.3f} "
        f"at most, and {inside:.0%} of the measured distances lie inside the prediction's interval."
    ]


def _with_ends(row: Any, name: str, form: str = ".2f") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    ends = "" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{row[name]:{form}}{ends}"


def _cifar(settings: TrainSettings, seeds: int = 3) -> BatchSizeCurveSettings:
    last = settings.steps
    return BatchSizeCurveSettings(
        sizes=(100, 200, 300, 500, 1000),
        pairs=20,
        row_size=100,
        stages=(last // 20, last // 4, last),
        seeds=seeds,
        train=replace(settings, rule="mean", tau=None, label_noise=0.0, record_layers_every=0),
    )


BATCH_SIZE_CURVE = Analysis(
    name="batch-size-curve",
    question="How does agreement grow with the microbatch, and does one Gramian tell? (Fig. 4)",
    presets={
        "quick": BatchSizeCurveSettings(),
        "cifar": _cifar(cifar_part(warmup_updates=0)),
        "gpu": _cifar(all_of_cifar(warmup_updates=0)),
        "paper": _cifar(as_published(), seeds=1),
    },
    minutes={
        "quick": "2 minutes on 2 cores",
        "cifar": "2 hours on 2 cores",
        "gpu": "20 minutes on one large GPU",
        "paper": "days on one GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_of(_plan(settings)[2]),
)
