"""The figure of the study of compositions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gafscope.plots.places import plot_places

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_TICKS = {
    "iid": "at random",
    "given": "balanced\n(given)",
    "true": "balanced\n(true)",
    "single": "one given\nclass each",
    "similar": "similar\nsamples",
}


def plot_composition(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw accuracies, leads and the accepted share by composition.

    Args:
        table: The analysis' table.
        curves: The analysis' curves; unused.

    Returns:
        Figure name -> figure.
    """
    label = "composition of the microbatches"
    return plot_places(table, "composition", label, name="composition", ticks=_TICKS)
