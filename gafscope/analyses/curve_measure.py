"""The distance of two microbatches by their size, measured and predicted from one Gramian."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from gafscope.calibration import predict_curve
from gafscope.data import MicrobatchSampler, Split
from gafscope.errors import UserError
from gafscope.gradients import Loss, gramian
from gafscope.trainer.job import Job

if TYPE_CHECKING:
    import pandas as pd

DISTANCE, NOISE_SCALE = "distance", "noise scale"
_PAIRS_AT_ONCE = 8


@final
@dataclass(frozen=True)
class CurveMeasure:
    """Measure the noise scale at every stage, and the curve at some.

    Attributes:
        sizes: Microbatch sizes to measure and predict at, in samples.
        pairs: Pairs of disjoint microbatches that each measured mean averages, at least.
        rows: Microbatches that the prediction and the noise scale are made from.
        row_size: Samples in each of these.
        stages: Steps after which the curve is measured.
        balance: How microbatches are composed.
    """

    sizes: tuple[int, ...]
    pairs: int
    rows: int
    row_size: int
    stages: tuple[int, ...]
    balance: str

    def __call__(self, job: Job, step: int, seed: int, /) -> pd.DataFrame:
        """Give rows of `kind` "noise scale" (one) and "distance" (one a size; at `stages`).

        `predicted`, `low` and `high` are the mean distance, or the noise scale, with the
        prediction's own 95% interval; `measured` is the distance; `refused` says why there is no
        prediction.
        """
        import pandas as pd

        data, model, loss = job.dataset.train, job.trainer.model, job.trainer.loss
        classes = None if self.balance == "iid" else _groups(job)
        known = _draw(data, self.rows, self.row_size, self.balance, seed)
        gram = gramian(model, loss, next(known), self.rows, layers=False, seed=seed)
        curve = predict_curve(
            gram, self.row_size, self.sizes, population=len(data), balanced=classes
        )
        scale = {"predicted": curve.noise_scale.value}
        scale |= {"low": curve.noise_scale.low, "high": curve.noise_scale.high}
        lines: list[dict[str, Any]] = [{"kind": NOISE_SCALE, **scale, "refused": curve.refused}]
        for row in curve.table.to_dict("records"):
            u = int(row["u"])
            if step == 0:
                _check_size(data, u, self.balance)
            if step not in self.stages:
                continue
            predicted = {"predicted": 1 - row["cosine"], "low": 1 - row["high"]}
            predicted |= {"high": 1 - row["low"], "refused": curve.refused}
            measured = measured_distance(
                model, loss, data, u, self.pairs, balance=self.balance, seed=seed
            )
            lines.append({"kind": DISTANCE, "u": u, "measured": measured, **predicted})
        return pd.DataFrame(lines)


def _groups(job: Job) -> int:
    """Count what microbatches are balanced by: tasks where there are any, else classes."""
    tasks = job.dataset.train.tasks
    return job.dataset.num_classes if tasks is None else len(tasks.unique())


def measured_distance(
    model: nn.Module,
    loss: Loss,
    data: Split,
    u: int,
    pairs: int,
    *,
    balance: str = "iid",
    seed: int = 0,
) -> float:
    """Average the cosine distance of pairs of disjoint microbatches.

    Args:
        model: The model, in the mode to measure it in; left as it was.
        loss: As in `gramian`.
        data: Where microbatches are drawn from, without replacement pass by pass.
        u: Samples in a microbatch.
        pairs: At least so many pairs.
        balance: As in `MicrobatchSampler`.
        seed: Draws the microbatches.

    Returns:
        The mean distance.

    Raises:
        UserError: If two such microbatches cannot be drawn.
    """
    # At most half of the data at once, so that balanced pools are large enough too.
    each = max(1, min(_PAIRS_AT_ONCE, len(data) // (4 * u)))
    batches = _draw(data, 2 * each, u, balance, seed)
    distances = []
    for _ in range(math.ceil(pairs / each)):
        gram = gramian(model, loss, next(batches), 2 * each, layers=False, seed=seed)
        distances.append(gram.cosine_distance().diagonal(1)[::2])
    return float(torch.cat(distances).mean())


def _draw(data: Split, rows: int, size: int, balance: str, seed: int) -> MicrobatchSampler:
    return MicrobatchSampler(
        data, microbatches=rows, microbatch_size=size, balance=balance, seed=seed
    )


def _check_size(data: Split, u: int, balance: str) -> None:
    """Refuse a size that cannot be drawn; at the untrained stage, so before the first training."""
    if 2 * u > len(data):
        raise UserError(
            f"Two disjoint microbatches of {u} samples are needed, but there are {len(data)} to "
            "train on; lower --sizes."
        )
    _draw(data, 2, u, balance, seed=0)
