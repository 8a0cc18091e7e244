"""The figure of the study of dynamics: accuracy, distance, and distance by layer over the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gafscope.plots.matrices import short_name
from gafscope.plots.style import BLUE, GREY, ORANGE, count_axis, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WHOLE = "whole model"
_ACCURACIES = (
    ("train_accuracy", "train, given labels", GREY),
    ("validation_accuracy", "validation", BLUE),
)
_POINTS = 400
_LONGEST_NAME = 22
_MOST_NAMES = 30


def plot_dynamics(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw accuracies, raw and rolling distance and the layers' distances over the steps.

    Args:
        table: The analysis' table; unused, the curves tell everything.
        curves: The analysis' curves.

    Returns:
        Figure name -> figure; one row of panels a data set.
    """
    data = list(dict.fromkeys(curves["data"]))
    whole = curves[curves["part"] == _WHOLE]
    layers = curves[curves["part"] != _WHOLE]
    names = list(dict.fromkeys(layers["part"]))
    height = max(3.3, 1.2 + 0.16 * min(len(names), _MOST_NAMES))
    # The same colours for all data sets, centred at 1.
    reach = max(0.05, float(np.abs(layers["distance"] - 1).quantile(0.99)))
    with theme():
        figure = new_figure(14, height * len(data))
        grid = figure.subplots(len(data), 3, squeeze=False, width_ratios=(1, 1, 1.25))
        for row, name in zip(grid, data, strict=True):
            part = whole[whole["data"] == name]
            _draw_accuracy(row[0], part)
            _draw_distance(row[1], part)
            row[0].set_title(name)
            row[1].set_title("all parameters together")
            _draw_layers(row[2], layers[layers["data"] == name], names, reach)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        grid[0][0].legend(loc="lower right", title="mean and range of seeds")
        grid[0][1].legend(loc="upper right")
    return {"dynamics": figure}


def _draw_accuracy(axes: Axes, part: pd.DataFrame) -> None:
    for column, label, colour in _ACCURACIES:
        steps = part.dropna(subset=[column]).groupby("step")[column]
        found = 100 * steps.agg(["mean", "min", "max"])
        axes.plot(found.index, found["mean"], color=colour, label=label)
        shade = {"color": colour, "alpha": 0.18, "linewidth": 0}
        axes.fill_between(found.index, found["min"], found["max"], **shade)
    axes.set(ylabel="accuracy (%)", ylim=(-3, 103))
    count_axis(axes.xaxis)


def _draw_distance(axes: Axes, part: pd.DataFrame) -> None:
    first = part[part["seed"] == part["seed"].min()]
    first = first.iloc[:: max(1, len(first) // _POINTS)]
    axes.plot(
        first["step"],
        first["distance"],
        ".",
        color=GREY,
        alpha=0.5,
        ms=3,
        label="single steps, first seed",
    )
    rolling = part.groupby("step")["rolling_distance"].agg(["mean", "min", "max"])
    axes.plot(rolling.index, rolling["mean"], color=ORANGE, label="means over 100 steps")
    shade = {"color": ORANGE, "alpha": 0.25, "linewidth": 0}
    axes.fill_between(rolling.index, rolling["min"], rolling["max"], **shade)
    axes.axhline(1, color="0.3", linewidth=0.9, linestyle=":")
    axes.set(ylabel="cosine distance", ylim=(0, 2))
    count_axis(axes.xaxis)


def _draw_layers(axes: Axes, part: pd.DataFrame, names: list[str], reach: float) -> None:
    wide = part.pivot_table(index="part", columns="step", values="distance").reindex(names)
    width = float(np.diff(wide.columns).min()) if wide.shape[1] > 1 else 1.0
    # Stretches of the steps in which nothing was recorded stay empty.
    image = axes.imshow(
        wide.to_numpy(dtype=np.float64),
        cmap="vlag",
        vmin=1 - reach,
        vmax=1 + reach,
        aspect="auto",
        extent=(0, float(wide.columns[-1]) + width, len(names) - 0.5, -0.5),
        interpolation="nearest",
    )
    axes.grid(visible=False)
    every = -(-len(names) // _MOST_NAMES)
    axes.set_yticks(
        range(0, len(names), every), [short_name(n, _LONGEST_NAME) for n in names[::every]]
    )
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title("by parameter, mean over seeds")
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label="cosine distance")
    count_axis(axes.xaxis)
