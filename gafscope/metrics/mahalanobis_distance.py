"""Mean Mahalanobis distance of a row to the others."""

from __future__ import annotations

from gafscope import geometry
from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import without_interval
from gafscope.metrics.source import Source, finite_gramian


def mahalanobis_distance(
    source: Source, *, shrinkage: float | str = "ledoit-wolf", layer: str | None = None
) -> Estimate:
    """Average the squared Mahalanobis distance a dimension of each row to the mean of the others.

    `mean_i v_i^T C^-1 v_i / r`, v_i = g_i less the mean of the others, C the shrunk covariance in
    the r <= n - 1 dimensions that the rows span (formula and source in
    `gafscope.geometry.mahalanobis`; shrinkage of Ledoit and Wolf 2004, J. Multivariate Anal. 88).
    The covariance comes from the same n rows, so the value depends on n by its nature, and
    carries no interval; compare it at equal n.

    Args:
        source: Gramian or gradients, at least 3 finite rows (two are equally far from each other).
        shrinkage: rho in (0, 1], or "ledoit-wolf" to estimate it; 1 counts all directions alike.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number free of units: at most `(n / (n - 1))^2`, which is reached where all directions
        vary alike (or count alike, shrinkage 1); less where few directions vary most.

    Raises:
        UserError: If the shrinkage is out of range, or 0 where that leaves the covariance singular,
            there is no such layer, or there are too few rows.
    """
    matrix, note = finite_gramian(source, layer, "mahalanobis_distance", 3)
    squares = geometry.mahalanobis_squares(matrix, shrinkage)
    dimensions = max(geometry.span_dimension(matrix), 1)
    return without_interval(float(squares.mean()) / dimensions, len(matrix), note)
