"""Gradient confusion: the strongest opposition between two rows."""

from __future__ import annotations

from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import without_interval
from gafscope.metrics.source import Source, finite_gramian


def confusion(source: Source, *, layer: str | None = None) -> Estimate:
    """Give the smallest eta >= 0 with `<g_i, g_j> >= -eta` for all pairs i != j.

    Gradient confusion (Sankararaman et al. 2019, arXiv 1904.06963). It is an
    extreme, which grows with n, so it carries no interval.

    Args:
        source: Gramian or gradients, at least 2 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number of at least 0, in squared units of the gradient.

    Raises:
        UserError: If there is no such layer, or there are too few rows.
    """
    matrix, note = finite_gramian(source, layer, "confusion", 2)
    # The diagonal is never negative, so it cannot be what decides.
    return without_interval(max(-float(matrix.min()), 0.0), len(matrix), note)
