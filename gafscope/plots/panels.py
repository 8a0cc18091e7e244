"""The curves of one or several runs as small figures, for pages that lay them out themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gafscope.plots.runs import (
    PANELS,
    as_percent,
    draw_raw_and_mean,
    known_values,
    rolling_mean,
)
from gafscope.plots.style import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    count_axis,
    new_figure,
    theme,
)
from gafscope.records.acceptance import accepted_fraction, every_step_recorded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_SIZE = (4.2, 2.9)
_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, BROWN, GREY, SKY)
_LINES = ("-", "--", "-.", ":")
_COMPARED = {
    "loss": "training loss",
    "validation_loss": "validation loss",
    "accuracy": "training accuracy (%)",
    "validation_accuracy": "validation accuracy (%)",
    "distance_mean": "cosine distance (1: orthogonal)",
    "accepted": "accepted microbatches (%)",
    "updates": "updates made",
}
_SHARES = ("accuracy", "validation_accuracy", "accepted")
_MEASURED_NOW_AND_THEN = ("validation_loss", "validation_accuracy")


def plot_run_panels(scalars: pd.DataFrame, config: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the panels of `plot_run`, each as a figure of its own.

    Args:
        scalars: `Run.scalars`.
        config: `Run.config`.

    Returns:
        Panel name ("loss", "accuracy", "distance", "acceptance") -> figure, without a title.
        Panels of which nothing was recorded are left out.
    """
    figures = {}
    for name, draw in PANELS.items():
        with theme():
            figure = new_figure(*_SIZE)
            axes = figure.subplots()
            draw(axes, scalars, config)
            axes.set(title="", xlabel="step")
            count_axis(axes.xaxis)
        labels = axes.get_legend_handles_labels()[1]
        # A line for tau alone tells nothing.
        if any(not label.startswith("tau = ") for label in labels):
            figures[name] = figure
    return figures


def plot_column(scalars: pd.DataFrame, name: str) -> Figure:
    """Draw one column over the steps: faint points and their rolling mean.

    Args:
        scalars: `Run.scalars`.
        name: A column of numbers.

    Returns:
        The figure.
    """
    with theme():
        figure = new_figure(*_SIZE)
        axes = figure.subplots()
        draw_raw_and_mean(axes, known_values(scalars, name), BLUE, name)
        axes.set(xlabel="step", ylabel=name)
        count_axis(axes.xaxis)
    return figure


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Choose colour and line style for each run of a comparison.

    Args:
        names: The runs' names.

    Returns:
        Name -> `{"color": ..., "linestyle": ...}`; the first 32 differ, and the first four in
        the line style too.
    """
    styles = {}
    for place, name in enumerate(names):
        turn = place // len(_COLOURS)
        line = _LINES[(place + turn) % len(_LINES)]
        styles[name] = {"color": _COLOURS[place % len(_COLOURS)], "linestyle": line}
    return styles


def plot_runs_panels(
    runs: Mapping[str, tuple[pd.DataFrame, Mapping[str, Any]]],
) -> dict[str, Figure]:
    """Draw several runs into one panel a quantity.

    Args:
        runs: Name -> `Run.scalars` and `Run.config`; `line_styles` tells how each is drawn.

    Returns:
        Panel name ("loss", "validation_loss", "accuracy", "validation_accuracy",
        "distance_mean", "accepted", "updates") -> figure without a legend, of rolling means over
        about 1/50 of each run (validations and updates as they are). Panels of which nothing was
        recorded are left out.
    """
    figures = {}
    styles = line_styles(runs)
    for name, ylabel in _COMPARED.items():
        columns = {run: _compared(name, *record) for run, record in runs.items()}
        if all(column.empty for column in columns.values()):
            continue
        with theme():
            figure = new_figure(*_SIZE)
            axes = figure.subplots()
            for run, column in columns.items():
                marker = "o" if len(column) == 1 or name in _MEASURED_NOW_AND_THEN else None
                axes.plot(column.index, column, marker=marker, markersize=4, **styles[run])
            axes.set(xlabel="step", ylabel=ylabel)
            if name in _SHARES:
                as_percent(axes)
            count_axis(axes.xaxis)
        figures[name] = figure
    return figures


def _compared(name: str, scalars: pd.DataFrame, config: Mapping[str, Any]) -> pd.Series:
    if name == "updates":
        stepped = known_values(scalars, "stepped")
        return stepped.cumsum() if every_step_recorded(scalars) else stepped.iloc[:0]
    if name == "accepted":
        scalars = scalars.assign(accepted=accepted_fraction(scalars, config))
    column = known_values(scalars, name)
    return column if name in _MEASURED_NOW_AND_THEN else rolling_mean(column)
