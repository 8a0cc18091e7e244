"""Macrobatches that agree and that conflict, seen in two dimensions (arXiv 2412.18052, Fig. 2).

The paper draws micro-gradients as arrows in a plane. Here the arrows are a real network's: the
micro-gradients of a macrobatch, projected on their first two principal directions, with the share
of their squared length that this projection keeps.

Shape legend: k micro-gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float64
from torch import Tensor
from tyro.conf import OmitArgPrefixes

from gafscope.aggregation import GAF
from gafscope.analyses.comparison import interval_columns
from gafscope.analyses.conditions import RULE_NAMES
from gafscope.analyses.presets import all_of_cifar, cifar_part, noisy_digits
from gafscope.analyses.result import Analysis, Conclusion, Measured
from gafscope.analyses.stage_measures import draw_rows, measure_stages
from gafscope.analyses.trials import Trial, data_name, plan_of, trials_of
from gafscope.errors import UserError
from gafscope.geometry import mean_pairwise_distance
from gafscope.gradients import Gramian, gramian
from gafscope.trainer import TrainSettings
from gafscope.trainer.job import Job

if TYPE_CHECKING:
    import pandas as pd

ALL, ALIGNED, CONFLICTING, OTHER = "all", "aligned", "conflicting", "other"
EXAMPLES = (ALIGNED, CONFLICTING)
"""Of each stage and seed the macrobatches with the smallest and the largest mean distance."""
_COLUMNS, _MEANS = ("distance", "kept"), ("accepted", "stepped")


def _quick() -> TrainSettings:
    return noisy_digits(
        rule="mean", microbatches=4, validate_every=500, record_layers_every=0, tau=0.97
    )


@final
@dataclass(frozen=True)
class IllustrationSettings:
    """Draw the micro-gradients of an agreeing and of a conflicting macrobatch as arrows.

    A network is trained by averaging; GAF decides on its macrobatches without moving it.
    """

    stages: tuple[int, ...] = (10, 1500)
    """Steps after which micro-gradients are drawn, beside those of the untrained network."""
    macrobatches: int = 16
    """Disjoint macrobatches, of --microbatches each, among which the examples are sought."""
    seeds: int = 3
    """Seeds, counted up from --seed; the figure shows the first."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=_quick)
    """How to train; --tau is that of the GAF that decides."""


@final
@dataclass(frozen=True)
class ProjectionMeasure:
    """Measure macrobatches, let GAF decide on them, and project their micro-gradients.

    Attributes:
        macrobatches: How many.
        microbatches: k, in each.
        microbatch_size: Samples in a microbatch.
        tau: GAF's threshold.
    """

    macrobatches: int
    microbatches: int
    microbatch_size: int
    tau: float

    def __call__(self, job: Job, step: int, seed: int, /) -> pd.DataFrame:
        """Give one row a micro-gradient.

        Columns: `macrobatch`, `row`, `x` and `y` (its place along the two directions), `norm`,
        `to_sum` (its distance to the running sum), `accepted`; and those of its macrobatch:
        `distance` (mean over the pairs), `kept`, `stepped`.
        """
        import pandas as pd

        k, rows = self.microbatches, self.macrobatches * self.microbatches
        data = job.dataset.train
        batch = data.batch(draw_rows(data, rows, self.microbatch_size, seed))
        model, loss = job.trainer.model, job.trainer.loss
        matrix = gramian(model, loss, batch, rows, layers=False, seed=seed).matrix.cpu()
        lines = []
        for number in range(self.macrobatches):
            own = slice(number * k, (number + 1) * k)
            lines += _lines(number, matrix[own, own], self.tau)
        return pd.DataFrame(lines)


def project(matrix_kk: Float64[Tensor, "k k"]) -> tuple[Float64[Tensor, "k 2"], float]:
    """Project micro-gradients on their first two principal directions (not centred).

    With the Gramian's eigenvectors `K = V diag(l) V^T` the place of row i along direction j is
    `sqrt(l_j) V_ij`; no plane through the origin keeps more of the squared lengths.

    Args:
        matrix_kk: Gramian of k >= 2 micro-gradients.

    Returns:
        The places, turned so that the sum of all points along the positive axes; and the kept
        share of the squared lengths, `(l_1 + l_2) / sum l`.

    Example:
        >>> rows = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]).double()
        >>> places, kept = project(rows @ rows.T)
        >>> places.tolist(), round(kept, 4)
        ([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]], 0.9286)
    """
    values, vectors = torch.linalg.eigh(matrix_kk)
    values = values.clamp(min=0).flip(0)
    places = vectors.flip(1)[:, :2] * values[:2].sqrt()
    signs = torch.where(places.sum(0) < 0, -1.0, 1.0)
    total = float(values.sum())
    return places * signs + 0.0, float(values[:2].sum()) / total if total else math.nan


def measure(settings: IllustrationSettings) -> Measured:
    """Train and measure, or go on with it stage by stage.

    Args:
        settings: The settings.

    Returns:
        One row a seed, stage and macrobatch; as curves the micro-gradients of the examples.

    Raises:
        UserError: If a setting is wrong, or the folder holds measurements with others.
    """
    import pandas as pd

    root = Path(settings.train.run_dir or "runs/illustration")
    measuring, stages, trials = _plan(settings)
    found = pd.concat(
        [
            part.assign(data=trial.data, seed=trial.seed)
            for trial in trials
            for part in measure_stages(trial, measuring, stages, root)
        ],
        ignore_index=True,
    )
    keys = ["data", "seed", "step", "macrobatch"]
    whole = {name: (name, "first") for name in ("distance", "kept", "stepped")}
    runs = found.groupby(keys, sort=False).agg(**whole, accepted=("accepted", "mean")).reset_index()
    runs["example"] = OTHER
    by_stage = runs.groupby(["seed", "step"])["distance"]
    runs.loc[by_stage.idxmin(), "example"] = ALIGNED
    runs.loc[by_stage.idxmax(), "example"] = CONFLICTING
    shown = found.merge(runs[[*keys, "example"]], on=keys)
    return Measured(runs, shown[shown["example"] != OTHER], root)


def conclude(
    settings: IllustrationSettings, runs: pd.DataFrame, curves: pd.DataFrame
) -> Conclusion:
    """Average over the seeds.

    Args:
        settings: The settings.
        runs: From `measure`.
        curves: From `measure`; unused.

    Returns:
        For each stage the mean over all macrobatches and over the examples: mean distance, kept
        share of the squared length, with intervals over the seeds; accepted share of the
        micro-gradients, and share of macrobatches that step.
    """
    import pandas as pd

    rows = []
    for (data, step), stage in runs.groupby(["data", "step"], sort=False):
        for which in (ALL, *EXAMPLES):
            part = stage if which == ALL else stage[stage["example"] == which]
            by_seed = part.groupby("seed")[[*_COLUMNS, *_MEANS]].mean()
            row: dict[str, Any] = {"data": data, "step": step, "macrobatches": which}
            row["seeds"] = len(by_seed)
            for column in _COLUMNS:
                row |= interval_columns(column, by_seed[column].tolist())
            rows.append(row | by_seed[list(_MEANS)].mean().to_dict())
    table = pd.DataFrame(rows)
    return Conclusion(table, _verdict(table, settings.train))


def _plan(settings: IllustrationSettings) -> tuple[ProjectionMeasure, list[int], list[Trial]]:
    train = settings.train
    if isinstance(train.microbatches, str) or train.microbatches < 2:
        raise UserError(
            "illustration draws the micro-gradients of macrobatches, so microbatches must be 2 or "
            f"more, but is {train.microbatches}."
        )
    if settings.macrobatches < 2:
        raise UserError(
            "macrobatches must be at least 2, to have one that agrees and one that conflicts, but "
            f"is {settings.macrobatches}."
        )
    if not settings.stages or not all(0 <= stage <= train.steps for stage in settings.stages):
        raise UserError(
            f"stages are steps from 0 to --steps, {train.steps}, but are {list(settings.stages)}; "
            "lower them or make more steps."
        )
    tau = GAF().tau if train.tau is None else train.tau
    measuring = ProjectionMeasure(
        settings.macrobatches, train.microbatches, train.microbatch_size, tau
    )
    name = RULE_NAMES.get(train.rule, train.rule)
    # The untrained network first: sizes that do not fit are refused before the first training.
    stages = sorted({0, *settings.stages})
    return measuring, stages, trials_of(data_name(train), {name: train}, settings.seeds)


def _lines(number: int, matrix: Tensor, tau: float) -> list[dict[str, Any]]:
    places, kept = project(matrix)
    decision = GAF(tau)(Gramian(matrix))
    whole = {
        "macrobatch": number,
        "distance": mean_pairwise_distance(matrix),
        "kept": kept,
        "stepped": decision.step,
    }
    return [
        whole
        | {
            "row": row,
            "x": float(places[row, 0]),
            "y": float(places[row, 1]),
            "norm": math.sqrt(float(matrix[row, row])),
            "to_sum": float(decision.distances[row]),
            "accepted": bool(decision.accepted[row] and decision.step),
        }
        for row in range(len(matrix))
    ]


def _verdict(table: pd.DataFrame, train: TrainSettings) -> str:
    tau = GAF().tau if train.tau is None else train.tau
    sentences = [f"Macrobatches of {train.microbatches} micro-gradients, GAF at tau {tau:g}."]
    for step, stage in table.groupby("step"):
        rows = stage.set_index("macrobatches")
        parts = [
            f"{rows.loc[which, 'distance']:.2f} in {words} (GAF accepts "
            f"{rows.loc[which, 'accepted']:.0%} of them)"
            for which, words in (
                (ALL, "all macrobatches"),
                (ALIGNED, "the most aligned"),
                (CONFLICTING, "the most conflicting"),
            )
        ]
        sentences.append(
            f"After {step} steps the mean distance is {', '.join(parts)}; the two directions keep "
            f"{rows.loc[ALIGNED, 'kept']:.0%} of the squared length of the aligned ones and "
            f"{rows.loc[CONFLICTING, 'kept']:.0%} of the conflicting ones."
        )
    k = train.microbatches
    assert isinstance(k, int), "the plan was checked"
    sentences.append(
        f"The largest of these means is {table['distance'].max():.2f}, where 1 is orthogonal and "
        f"{1 + 1 / (k - 1):.2f} the most that {k} vectors can have."
    )
    return " ".join(sentences)


def _cifar(settings: TrainSettings) -> IllustrationSettings:
    return IllustrationSettings(
        stages=(settings.steps // 20, settings.steps),
        train=replace(settings, rule="mean", microbatches=4, record_layers_every=0),
    )


ILLUSTRATION = Analysis(
    name="illustration",
    question="What do agreeing and conflicting micro-gradients look like in a plane? (Fig. 2)",
    presets={
        "quick": IllustrationSettings(),
        "cifar": _cifar(cifar_part(warmup_updates=0)),
        "gpu": _cifar(all_of_cifar(warmup_updates=0)),
    },
    minutes={
        "quick": "1 minute on 2 cores",
        "cifar": "2 hours on 2 cores",
        "gpu": "20 minutes on one large GPU",
    },
    measure=measure,
    conclude=conclude,
    plan=lambda settings: plan_of(_plan(settings)[2]),
)
