"""One run over its steps: loss, accuracy, agreement, acceptance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gafscope.plots.style import BLUE, GREEN, GREY, ORANGE, RED, count_axis, new_figure, theme
from gafscope.records.acceptance import accepted_fraction, every_step_recorded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WINDOWS = 50


def plot_run(scalars: pd.DataFrame, config: Mapping[str, Any]) -> Figure:
    """Draw a run's loss, accuracy, cosine distance and acceptance.

    Args:
        scalars: `Run.scalars`; columns that are missing or all NaN leave their place empty.
        config: `Run.config`; a number under `tau` is drawn into the distances, and
            `microbatches` is k where the scalars do not tell it.

    Returns:
        Four panels. Faint points are single steps, lines are rolling means over about 1/50 of
        the run.
    """
    with theme():
        figure = new_figure(11, 7.2)
        grid = figure.subplots(2, 2, sharex=True)
        for axes, draw in zip(grid.flat, PANELS.values(), strict=True):
            draw(axes, scalars, config)
        for axes in grid[1]:
            axes.set_xlabel("step")
            count_axis(axes.xaxis)
    return figure


def known_values(scalars: pd.DataFrame, name: str) -> pd.Series:
    """Take a column as floats over the steps, without the steps that have none.

    Args:
        scalars: `Run.scalars`.
        name: The column; it may be missing.

    Returns:
        The finite values, with the steps as their index.
    """
    table = scalars.reindex(columns=["step", name]).astype(float)
    column = table.set_index("step")[name]
    # An infinite loss has no place on an axis.
    return column[np.isfinite(column)]


def rolling_mean(column: pd.Series) -> pd.Series:
    """Average over a centred window of about 1/50 of a column.

    Args:
        column: Values over the steps.

    Returns:
        As many values, over the same steps.
    """
    window = max(1, len(column) // _WINDOWS)
    return column.rolling(window, min_periods=1, center=True).mean()


def draw_raw_and_mean(axes: Axes, column: pd.Series, colour: str, label: str) -> None:
    """Draw single steps as faint points and their rolling mean as a line.

    Args:
        axes: Where to draw.
        column: Values over the steps; nothing is drawn where there are none.
        colour: Colour of both.
        label: Name of the line in the legend.
    """
    if column.empty:
        return
    style = {"color": colour, "linestyle": "none", "marker": ".", "markeredgewidth": 0}
    # Points are drawn as a picture: a long run would make an SVG of many megabytes.
    axes.plot(column.index, column, alpha=0.25, markersize=5, rasterized=True, **style)
    marker = "o" if len(column) == 1 else None
    axes.plot(column.index, rolling_mean(column), color=colour, label=label, marker=marker)


def _draw_loss(axes: Axes, scalars: pd.DataFrame, config: Mapping[str, Any]) -> None:
    _draw_pair(axes, scalars, "loss")
    axes.set(title="loss", ylabel="loss")


def _draw_accuracy(axes: Axes, scalars: pd.DataFrame, config: Mapping[str, Any]) -> None:
    _draw_pair(axes, scalars, "accuracy")
    axes.set(title="accuracy", ylabel="accuracy (%)")
    as_percent(axes)


def _draw_pair(axes: Axes, scalars: pd.DataFrame, name: str) -> None:
    draw_raw_and_mean(axes, known_values(scalars, name), BLUE, "train")
    validation = known_values(scalars, f"validation_{name}")
    if not validation.empty:
        style = {"color": ORANGE, "linestyle": "--", "marker": "o", "markersize": 4}
        axes.plot(validation.index, validation, label="validation", **style)
    _finish(axes)


def _draw_distance(axes: Axes, scalars: pd.DataFrame, config: Mapping[str, Any]) -> None:
    draw_raw_and_mean(axes, known_values(scalars, "distance_mean"), GREEN, "mean over pairs")
    tau = config.get("tau")
    if isinstance(tau, (int, float)) and not isinstance(tau, bool):
        axes.axhline(tau, color=RED, linestyle="--", linewidth=1.4, label=f"tau = {tau:g}")
    axes.set(title="disagreement", ylabel="cosine distance (1: orthogonal)")
    _finish(axes)


def _draw_acceptance(axes: Axes, scalars: pd.DataFrame, config: Mapping[str, Any]) -> None:
    axes.set(title="acceptance", ylabel="accepted microbatches (%)")
    fraction = accepted_fraction(scalars, config)
    accepted = known_values(scalars.assign(accepted=fraction), "accepted")
    if not accepted.empty:
        marker = "o" if len(accepted) == 1 else None
        axes.plot(
            accepted.index, rolling_mean(accepted), color=BLUE, label="accepted", marker=marker
        )
    stepped = known_values(scalars, "stepped")
    if not stepped.empty and every_step_recorded(scalars):
        right = axes.twinx()
        right.grid(visible=False)
        for side in (axes, right):  # a second axis brings tick marks that the theme has not
            side.tick_params(left=False, right=False)
        marker = "o" if len(stepped) == 1 else None
        updates = stepped.cumsum()
        style = {"color": GREY, "linestyle": "-.", "marker": marker}
        right.plot(updates.index, updates, label="updates (right)", **style)
        count_axis(right.yaxis)
        right.set(ylabel="updates made", ylim=(0, max(1.0, 1.05 * updates.iloc[-1])))
        axes.plot([], [], label="updates (right)", **style)
    _finish(axes)
    as_percent(axes)


PANELS: Mapping[str, Callable[[Axes, pd.DataFrame, Mapping[str, Any]], None]] = {
    "loss": _draw_loss,
    "accuracy": _draw_accuracy,
    "distance": _draw_distance,
    "acceptance": _draw_acceptance,
}
"""Panel name -> function of axes, `Run.scalars` and `Run.config` that draws it."""


def as_percent(axes: Axes) -> None:
    """Write the shares along a y axis as percentages.

    Args:
        axes: The axes; they reach from 0 to 100%.
    """
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))


def _finish(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        # Above the panel, beside its title, where no data can be.
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    else:
        place = axes.transAxes
        axes.text(0.5, 0.5, "not recorded", transform=place, ha="center", va="center", color="0.5")
