"""Mean Euclidean distance over all pairs."""

from __future__ import annotations

from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import estimate, mean_of_pairs
from gafscope.metrics.source import Source, finite_gramian


def l2_distance(source: Source, *, layer: str | None = None) -> Estimate:
    """Average the distance `|g_i - g_j|` (not its square) over all pairs of rows.

    `|g_i - g_j|^2 = K[i, i] + K[j, j] - 2 K[i, j]`. Unlike the cosine distance it sees lengths.
    The interval is the delete-one jackknife's; it covers 93-97% from n = 16 on.

    Args:
        source: Gramian or gradients, at least 2 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number of at least 0, in units of the gradient; 0 when all rows are equal.

    Raises:
        UserError: If there is no such layer, or there are too few rows.
    """
    matrix, note = finite_gramian(source, layer, "l2_distance", 2)
    squares = matrix.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * matrix).clamp(min=0).sqrt()
    return estimate(mean_of_pairs(distances), note, bounds=(0.0, float("inf")))
