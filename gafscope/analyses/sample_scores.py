"""Scores of single samples for finding wrong labels: those of the ranking, and three more.

Shape legend: n samples, P trainable numbers.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from gafscope import geometry
from gafscope.aggregation.selection import deviations
from gafscope.analyses.ranking import SCORES, rank_samples
from gafscope.calibration.microbatches import take
from gafscope.gradients import Loss, microbatch_gradients
from gafscope.gradients.problem import batch_size, trainable

ALL_SCORES = (*SCORES[:-1], "l2_distance", "mahalanobis_distance", "sign_disagreement", SCORES[-1])
"""What samples are scored by; the plain loss, the obvious competitor, comes last."""
# Gradient rows are held in pieces of so many numbers.
_NUMBERS = 2**25


def score_samples(
    model: nn.Module, loss: Loss, data: Any, true_targets: Tensor, *, samples: int, seed: int
) -> pd.DataFrame:
    """Score single samples by how far their gradients are from the others'.

    The model is in evaluation mode meanwhile, so that neither BatchNorm nor dropout couples or
    blurs the samples.

    Args:
        model: The model; left as it was.
        loss: As in `gramian`.
        data: `(inputs, targets)`, a whole data set as a batch.
        true_targets: (n,) labels known to be right.
        samples: Score a random part of this size where there are more.
        seed: Seed of that part.

    Returns:
        One row a sample: `sample`, `flipped`, and a column for each of `ALL_SCORES`, higher for
        what disagrees more: beside those of `gafscope.analyses.ranking`, `l2_distance` to the mean
        of the others, the squared `mahalanobis_distance` to it in the span of the gradients, and
        `sign_disagreement`.

    Raises:
        UserError: As `gafscope.analyses.ranking.rank_samples`.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        ranking = rank_samples(
            model, loss, data, true_targets=true_targets, samples=samples, seed=seed
        )
        disagreement = sign_disagreement(model, loss, take(data, ranking.indices))
    finally:
        for module, training in modes:
            module.training = training
    matrix = ranking.gramian.matrix.cpu()
    finite = geometry.finite_rows(matrix)
    products = torch.where(finite[:, None] & finite[None, :], matrix, 0.0)
    more = {
        "l2_distance": deviations(products, finite).numpy(),
        "mahalanobis_distance": geometry.mahalanobis_squares(matrix).numpy(),
        "sign_disagreement": disagreement.numpy(),
    }
    table = ranking.table.set_index("sample").loc[ranking.indices.tolist()].assign(**more)
    return table[["flipped", *ALL_SCORES]].reset_index()


def sign_disagreement(model: nn.Module, loss: Loss, data: Any) -> Float64[Tensor, " n"]:
    """Give the share of a sample's coordinates whose sign is not that of the others' sum.

    Of the coordinates where neither is 0, those with `sign(g_ij) != sign(sum_{l != i} g_lj)`.

    Args:
        model: The model, in evaluation mode.
        loss: As in `microbatch_gradients`.
        data: A batch of n samples.

    Returns:
        (n,) in [0, 1]; 0.5 where a gradient has no coordinate that is not 0.
    """
    n = batch_size(data)
    numbers = sum(parameter.numel() for parameter in trainable(model).values())
    size = min(n, max(1, _NUMBERS // numbers))
    total = n * microbatch_gradients(model, loss, data, microbatches=1).flat()[0]
    shares = []
    for start in range(0, n, size):
        piece = take(data, torch.arange(start, min(start + size, n)))
        rows = microbatch_gradients(model, loss, piece).flat()
        signs = rows.sign() * (total - rows).sign()
        counted = (signs != 0).sum(1)
        against = (signs < 0).sum(1).double()
        shares.append(torch.where(counted > 0, against / counted.clamp(min=1), 0.5).cpu())
    return torch.cat(shares)
