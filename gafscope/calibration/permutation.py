"""The label-permutation null: what agreement is left when labels tell nothing.

Shape legend: k micro-gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope import geometry
from gafscope.calibration.microbatches import take
from gafscope.gradients.problem import batch_size


def is_pair(batch: Any) -> bool:
    """Tell whether a batch is a pair (inputs, targets), whose targets can be shuffled."""
    return isinstance(batch, tuple | list) and len(batch) == 2


def permuted_distances(
    measure: Callable[[Any], Float64[Tensor, "k k"]],
    batch: Any,
    permutations: int,
    generator: torch.Generator,
) -> Float64[Tensor, " pairs"]:
    """Collect the distances between micro-gradients of shuffled labels.

    Gradients of shuffled labels share a mean (they all pull towards the class frequencies), which
    would pass for agreement, so it is removed; `gafscope.geometry.decorrelated` does it without
    the correlation of -1 / (k - 1) that subtracting an average brings in.

    Args:
        measure: Batch -> Gramian, (k, k), of its microbatches at the present parameters.
        batch: `(inputs, targets)`.
        permutations: How often to shuffle.
        generator: Shuffles.

    Returns:
        The distances of all pairs of all permutations; empty where no two rows are finite.
    """
    inputs, targets = batch
    found = []
    for _ in range(permutations):
        order = torch.randperm(batch_size(batch), generator=generator)
        found.append(pair_distances(geometry.decorrelated(measure((inputs, take(targets, order))))))
    return torch.cat(found)


def pair_distances(matrix_kk: Float64[Tensor, "k k"]) -> Float64[Tensor, " pairs"]:
    """Give the cosine distances of all pairs i < j of finite rows.

    Args:
        matrix_kk: Gramian, (k, k) float64.

    Returns:
        Up to k (k - 1) / 2 numbers.
    """
    rows, columns = torch.triu_indices(*matrix_kk.shape, offset=1)
    distances = geometry.cosine_distance(matrix_kk)[rows, columns]
    return distances[torch.isfinite(distances)]
