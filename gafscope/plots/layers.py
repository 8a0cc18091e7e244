"""The figures of the study of layers: rules beside each other, and the parts of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gafscope.plots.matrices import short_name
from gafscope.plots.places import plot_places
from gafscope.plots.style import BLUE, GREY, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_LONGEST_NAME = 30
_WHOLE, _NO_PART = "whole model", "-"
_PANELS = (
    ("part_distance", "mean cosine distance", 1),
    ("within_tau", "pairs within tau (%)", 100),
)


def plot_layers(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw the comparison of the rules, and what disagrees under averaging.

    Args:
        table: The analysis' table.
        curves: The analysis' curves; unused.

    Returns:
        Figure name -> figure.
    """
    about_parts = table["part"] != _NO_PART
    rules = table[~about_parts]
    compared = plot_places(rules, "noise", "wrong training labels (%)", name="layers", factor=100)
    return {**compared, "parts": _plot_parts(table[about_parts])}


def _plot_parts(parts: pd.DataFrame) -> Figure:
    """Draw the parts of the first place below each other, in the order of the network."""
    parts = parts[parts["noise"] == parts["noise"].iloc[0]]
    panels = [panel for panel in _PANELS if panel[0] in parts and parts[panel[0]].notna().any()]
    heights = list(range(len(parts), 0, -1))
    colours = [GREY if part == _WHOLE else BLUE for part in parts["part"]]
    with theme():
        figure = new_figure(4.4 * len(panels) + 1.6, 1.4 + 0.3 * len(parts))
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (column, label, factor) in zip(grid, panels, strict=True):
            low, high = (factor * parts[f"{column}_{end}"] for end in ("low", "high"))
            axes.hlines(heights, low, high, colors=colours)
            axes.scatter(factor * parts[column], heights, c=colours, zorder=3)
            axes.set_xlabel(f"{label}, 95% interval over seeds")
            axes.grid(axis="y", visible=False)
        grid[0].axvline(1, color="0.5", linewidth=0.9, linestyle=":")
        names = [short_name(name, _LONGEST_NAME) for name in parts["part"]]
        grid[0].set_yticks(heights, names)
        figure.suptitle(str(parts["data"].iloc[0]), x=0.01, ha="left")
    return figure
