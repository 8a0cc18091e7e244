"""Mean cosine distance over all pairs."""

from __future__ import annotations

from gafscope import geometry
from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import estimate, mean_of_pairs
from gafscope.metrics.source import Source, finite_gramian


def mean_distance(source: Source, *, layer: str | None = None) -> Estimate:
    """Average the cosine distance `1 - <g_i, g_j> / (|g_i| |g_j|)` over all pairs of rows.

    The distance on which Gradient Agreement Filtering decides (arXiv 2412.18052). The interval is
    the delete-one jackknife's; it covers 95-97% from n = 16 on where the distance is below
    about 0.85, and up to 99% where the rows are unrelated.

    Args:
        source: Gramian or gradients, at least 2 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number in [0, 2]: 0 aligned, 1 unrelated, 2 opposed. A zero row is at distance 1.

    Raises:
        UserError: If there is no such layer, or there are too few rows.

    Example:
        >>> import torch
        >>> from gafscope.gradients import GradientRows
        >>> mean_distance(GradientRows({"w": torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])}))
        1.333 [1.333, 1.333] (n=4)
    """
    matrix, note = finite_gramian(source, layer, "mean_distance", 2)
    distances = mean_of_pairs(geometry.cosine_distance(matrix))
    return estimate(distances, note, bounds=(0.0, 2.0))
