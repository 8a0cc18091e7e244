"""The live view's panel, drawn from a run's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gafscope.plots.panel import plot_panel
from gafscope.records import Run
from gafscope.report.matrices import layer_distances

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_panel(run: Run) -> Figure:
    """Draw what the live view showed of a run, or would have shown.

    Args:
        run: The run, finished or not.

    Returns:
        Loss, distance, acceptance, the matrix of the last recorded step and the heat map of
        layers over steps.

    Raises:
        UserError: If a file of the matrices is damaged.
    """
    layers, _, _ = layer_distances(run)
    steps = run.recorded_steps
    last = (steps[-1], run.cosine_distance(steps[-1])) if steps else None
    return plot_panel(run.scalars, run.config, last, layers)
