"""Agreement over a training by averaging, whole and by layer (arXiv 2412.18052, Figs. 1 and 3).

The paper sees the cosine distance of two microbatches near 1, and above, late in training. Here it
is followed step by step, as a rolling mean and parameter by parameter, beside the accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tyro.conf import OmitArgPrefixes

from gafscope.analyses.comparison import interval_columns
from gafscope.analyses.conditions import AVERAGING
from gafscope.analyses.layer_distances import layer_distances
from gafscope.analyses.leads import check_validated
from gafscope.analyses.presets import all_of_cifar, as_published, cifar_part, noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.trials import (
    SMOOTH,
    Trial,
    curves_of,
    data_name,
    plan_of,
    run_trials,
    trials_of,
)
from gafscope.errors import UserError
from gafscope.records import Run
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

WHOLE = "whole model"
PHASES = ("early", "lowest", "late")
"""The first twentieth of the steps, the one with the smallest mean distance, and the last one."""
_PHASE_BINS = 20
_MAP_BINS = 50


def _quick() -> TrainSettings:
    return noisy_digits(
        rule="mean", tau=None, model_options={"hidden": "128,64"}, validate_every=25
    )


@final
@dataclass(frozen=True)
class DynamicsSettings:
    """Follow accuracy and cosine distance while a network is trained by averaging.

    Any network will do: --model cnn, --model vit, --model resnet18, --data text --model gpt ...
    """

    noises: tuple[float, ...] = (0.0, 0.4)
    """Shares of the training labels that are moved to another class."""
    records: int = 300
    """Steps at which distances by layer are recorded, evenly spaced."""
    seeds: int = 3
    """Seeds of each noise level, counted up from --seed."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=_quick)
    """How to train; --rule, --label-noise and --record-layers-every are the study's own."""


def measure(settings: DynamicsSettings) -> Measured:
    """Train, or go on with it.

    Args:
        settings: The settings.

    Returns:
        One row a noise level, seed and part: its distances by phase (`PHASES`), and for the whole
        model accuracies and single steps; as curves those of the runs, and for each layer means
        over 50 equal stretches of the steps and over the seeds.

    Raises:
        UserError: If a setting is wrong.
    """
    import pandas as pd

    root = Path(settings.train.run_dir or "runs/dynamics")
    trials = _trials(settings)
    runs = run_trials(trials, root)
    layers = [layer_distances(run) for run in runs]
    rows = [
        {"data": trial.data, "rule": trial.rule, "seed": trial.seed, **row}
        for trial, run, layer in zip(trials, runs, layers, strict=True)
        for row in [_whole(run), *_by_layer(layer, trial.settings.steps)]
    ]
    curves = [curves_of(trials, runs).assign(part=WHOLE).drop(columns=["tau", "accepted"])]
    curves += [_map(trials, layers)]
    return Measured(pd.DataFrame(rows), pd.concat(curves, ignore_index=True), root)


def conclude(settings: DynamicsSettings, runs: pd.DataFrame, curves: pd.DataFrame) -> Conclusion:
    """Average over the seeds and say where the distance ends.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        One row a noise level and part of the network, with intervals over the seeds.
    """
    import pandas as pd

    means = ("late_highest", "late_above_one", "train_accuracy", "validation_accuracy")
    rows = []
    for (data, part), group in runs.groupby(["data", "part"], sort=False):
        row: dict[str, Any] = {"data": data, "part": part, "seeds": len(group)}
        for name in PHASES:
            row |= interval_columns(name, group[name].tolist())
        rows.append(row | {name: group[name].mean() for name in means})
    table = pd.DataFrame(rows)
    return Conclusion(table, _verdict(table))


def _trials(settings: DynamicsSettings) -> list[Trial]:
    train = settings.train
    check_validated(train)
    if settings.records < _PHASE_BINS or train.steps < _PHASE_BINS:
        raise UserError(
            f"The training is cut into {_PHASE_BINS} phases, so it needs at least as many steps "
            f"and records, but there are {train.steps} and {settings.records}; raise --steps or "
            "--records."
        )
    trials = []
    for noise in settings.noises:
        own = replace(
            train,
            rule="mean",
            tau=None,
            rule_options=None,
            label_noise=noise,
            record_layers_every=max(1, train.steps // settings.records),
        )
        trials += trials_of(data_name(own), {AVERAGING: own}, settings.seeds)
    return trials


def _whole(run: Run) -> dict[str, Any]:
    """Summarise the distance of all parameters together."""
    scalars = run.scalars
    last = scalars["distance_mean"].tail(max(1, len(scalars) // _PHASE_BINS))
    return {
        "part": WHOLE,
        **_phases(scalars["step"], scalars["distance_mean"], len(scalars)),
        "late_highest": last.max(),
        "late_above_one": (last > 1).mean(),
        "train_accuracy": scalars["accuracy"].tail(SMOOTH).mean(),
        "validation_accuracy": scalars["validation_accuracy"].dropna().iloc[-1],
    }


def _by_layer(layers: pd.DataFrame, steps: int) -> list[dict[str, Any]]:
    return [
        {"part": name, **_phases(part["step"], part["distance"], steps)}
        for name, part in layers.groupby("part", sort=False)
    ]


def _phases(step: pd.Series, distance: pd.Series, steps: int) -> dict[str, float]:
    means = distance.groupby(step * _PHASE_BINS // steps).mean()
    return {"early": means.iloc[0], "lowest": means.min(), "late": means.iloc[-1]}


def _map(trials: Sequence[Trial], layers: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Average distances by layer over stretches of the steps and over the seeds."""
    import pandas as pd

    found = pd.concat(
        [layer.assign(data=trial.data) for trial, layer in zip(trials, layers, strict=True)]
    )
    width = max(1, math.ceil(trials[0].settings.steps / _MAP_BINS))
    found["step"] = found["step"] // width * width
    keys = ["data", "part", "step"]
    return found.groupby(keys, sort=False)["distance"].mean().reset_index()


def _verdict(table: pd.DataFrame) -> str:
    sentences = ["Mean cosine distance of the microbatches, 95% intervals over seeds."]
    for data, parts in table.groupby("data", sort=False):
        whole = parts[parts["part"] == WHOLE].iloc[0]
        layers = parts[parts["part"] != WHOLE].sort_values("late")
        sentences.append(
            f"{data}: train accuracy ends at {whole['train_accuracy']:.1%}, validation at "
            f"{whole['validation_accuracy']:.1%}. The distance is {_with_ends(whole, 'early')} in "
            f"the first twentieth of the steps, {_with_ends(whole, 'lowest')} in the lowest and "
            f"{_with_ends(whole, 'late')} in the last{_against_one(whole)}; single steps there "
            f"reach {whole['late_highest']:.2f} on average over the seeds, and "
            f"{whole['late_above_one']:.0%} lie above 1."
        )
        low, high = layers.iloc[0], layers.iloc[-1]
        sentences.append(
            f"By parameter it ends between {_with_ends(low, 'late')} ({low['part']}) and "
            f"{_with_ends(high, 'late')} ({high['part']})."
        )
    return " ".join(sentences)


def _against_one(row: Any) -> str:
    if row["late_high"] < 1:
        return ", below 1"
    return ", above 1" if row["late_low"] > 1 else ", not told apart from 1"


def _with_ends(row: Any, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f}" + ("" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]")


DYNAMICS = Analysis(
    name="dynamics",
    question="Where does agreement go while a network learns and memorises? (Figs. 1 and 3)",
    presets={
        "quick": DynamicsSettings(),
        "cifar": DynamicsSettings(train=cifar_part(warmup_updates=0)),
        "gpu": DynamicsSettings(train=all_of_cifar(warmup_updates=0)),
        "paper": DynamicsSettings(records=500, seeds=1, train=as_published()),
    },
    minutes={
        "quick": "1 minute on 2 cores",
        "cifar": "1 hour on 2 cores",
        "gpu": "10 minutes on one large GPU",
        "paper": "days on one GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_of(_trials(settings)),
)
