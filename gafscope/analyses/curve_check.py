"""Whether one Gramian at one microbatch size predicts agreement at the others.

Shape legend: n samples, m microbatches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gafscope.aggregation import Mean
from gafscope.calibration import predict_curve
from gafscope.data import MicrobatchSampler, load_data
from gafscope.gradients import Gramian, gramian, supervised
from gafscope.models import mlp
from gafscope.trainer import Trainer

SIZES = (5, 10, 20, 50, 100, 200, 400)
STAGES = (100, 500, 1500)
_MAXIMUM_ROWS = 64


def check_curve(
    seed: int,
    *,
    stages: Sequence[int] = STAGES,
    sizes: Sequence[int] = SIZES,
    microbatch_size: int = 20,
    label_noise: float = 0.4,
    pairs: int = 400,
) -> pd.DataFrame:
    """Compare predicted and measured agreement during a run of averaging on digits.

    An MLP 64-128-10 is trained by SGD (Nesterov momentum .9, lr .05) on macrobatches of two
    microbatches of 20. At each stage the Gramian of all single samples is computed; microbatches
    of any composition are means of its rows and columns.

    Args:
        seed: Of data split, label noise, weights and batches.
        stages: Steps at which to compare.
        sizes: Microbatch sizes u to compare at.
        microbatch_size: The size that the prediction is made from, with up to 64 microbatches.
        label_noise: Share of wrong labels.
        pairs: Disjoint pairs of microbatches that each measured mean cosine averages.

    Returns:
        One row a stage and size: `seed`, `step`, `u`, `measured`, `predicted`, `low`, `high`,
        `error` (predicted less measured), `noise_scale`, `refused` (the reason, or empty).
    """
    data = load_data("digits", label_noise=label_noise, seed=seed).train
    samples = (data.inputs, data.targets)
    loss = supervised(cross_entropy)
    model = _network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    trainer = Trainer(model, loss, optimizer, aggregator=Mean(), microbatches=2, seed=seed)
    batches = MicrobatchSampler(data, microbatches=2, microbatch_size=20, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for step in stages:
        trainer.fit(batches, step)
        matrix = gramian(model, loss, samples, layers=False).matrix
        known = _microbatches(len(data), microbatch_size, _MAXIMUM_ROWS, generator)
        curve = predict_curve(
            Gramian(_averaged(matrix, known)), microbatch_size, sizes, population=len(data)
        )
        for row in curve.table.to_dict("records"):
            measured = measured_cosine(matrix, int(row["u"]), pairs, generator)
            rows.append(
                {
                    "seed": seed,
                    "step": step,
                    "u": int(row["u"]),
                    "measured": measured,
                    "predicted": row["cosine"],
                    "low": row["low"],
                    "high": row["high"],
                    "error": row["cosine"] - measured,
                    "noise_scale": curve.noise_scale.value,
                    "refused": curve.refused,
                }
            )
    return pd.DataFrame(rows)


def measured_cosine(matrix_nn: Tensor, u: int, pairs: int, generator: torch.Generator) -> float:
    """Average the cosine of pairs of disjoint microbatches of u samples.

    Args:
        matrix_nn: Gramian of all samples, (n, n) float64.
        u: Samples in a microbatch; two must fit into n.
        pairs: At least so many pairs.
        generator: Draws the microbatches.

    Returns:
        The mean cosine. Microbatches of one draw are disjoint, so as many pairs of neighbours as
        fit are taken from each.
    """
    n = len(matrix_nn)
    each = n // (2 * u)
    cosines = []
    for _ in range(-(-pairs // each)):
        products = _averaged(matrix_nn, _microbatches(n, u, 2 * each, generator))
        norms = products.diagonal().sqrt()
        cosines.append((products.diagonal(1) / (norms[1:] * norms[:-1]))[::2])
    return float(torch.cat(cosines).mean())


def _network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(64, 128, 10)


def _microbatches(n: int, u: int, most: int, generator: torch.Generator) -> Tensor:
    """Draw disjoint microbatches, (m, u) sample numbers."""
    m = min(n // u, most)
    return torch.randperm(n, generator=generator)[: m * u].view(m, u)


def _averaged(matrix_nn: Tensor, members_mu: Tensor) -> Tensor:
    """Turn the samples' Gramian into that of microbatch means, (m, m)."""
    m, u = members_mu.shape
    shares = matrix_nn.new_zeros(m, len(matrix_nn)).scatter_(1, members_mu, 1 / u)
    return shares @ matrix_nn @ shares.T
