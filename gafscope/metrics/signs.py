"""Means over the signs of inner products, which say little where one sign is rare."""

from __future__ import annotations

import dataclasses
import math

from jaxtyping import Float64
from torch import Tensor

from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import estimate, join_notes, mean_of_pairs


def estimate_of_signs(
    values_nn: Float64[Tensor, "n n"],
    matrix_nn: Float64[Tensor, "n n"],
    note: str,
    bounds: tuple[float, float],
) -> Estimate:
    """Average over pairs a number that depends on the sign of their inner product.

    The interval is withheld where fewer than n / 2 pairs are opposed or fewer than n / 2 are not:
    it would shrink to nothing when none is, though the next row might be.

    Args:
        values_nn: (n, n), one number a pair.
        matrix_nn: Gramian of the same rows.
        note: What to tell the reader.
        bounds: The interval never leaves them.

    Returns:
        The estimate.
    """
    found = estimate(mean_of_pairs(values_nn), note, bounds=bounds)
    n = len(matrix_nn)
    # The diagonal is never negative.
    opposed = int((matrix_nn < 0).sum()) // 2
    others = n * (n - 1) // 2 - opposed
    if 2 * min(opposed, others) >= n or not found.has_interval:
        return found
    why = f"no interval: {opposed} of {opposed + others} pairs opposed"
    return dataclasses.replace(found, low=math.nan, high=math.nan, note=join_notes(note, why))
