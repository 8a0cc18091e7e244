"""The figures of the comparison of rules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gafscope.plots.style import BLUE, GREY, ORANGE, count_axis, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_GAINS = (
    ("points_over_averaging", "over averaging", BLUE, "o", 0.16),
    ("points_over_control", "over its own yoked control", ORANGE, "D", -0.16),
)
_AVERAGING, _FRESH = "averaging", "averaging, fresh microbatches"


def plot_rules(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw each rule's gains with their intervals, and its learning curve beside its control's.

    Args:
        table: The analysis' table.
        curves: The analysis' curves.

    Returns:
        Figure name -> figure; without "rules-curves" where nothing was validated.
    """
    first = curves[curves["data"] == curves["data"].iloc[0]]
    # A run without a validation has no numbers there, which are None.
    first = first.assign(validation_accuracy=first["validation_accuracy"].astype(float))
    validated = first.dropna(subset=["validation_accuracy"])
    learning = {} if validated.empty else {"rules-curves": _plot_curves(table, validated)}
    return {"rules": _plot_gains(table)} | learning


def _plot_gains(table: pd.DataFrame) -> Figure:
    comparisons = list(dict.fromkeys(table["data"]))
    rules = list(dict.fromkeys(table["rule"]))
    places = {rule: len(rules) - i for i, rule in enumerate(rules)}
    with theme():
        figure = new_figure(6.2 * len(comparisons), 1.4 + 0.42 * len(rules))
        panels = figure.subplots(1, len(comparisons), sharex=True, sharey=True, squeeze=False)[0]
        for axes, comparison in zip(panels, comparisons, strict=True):
            part = table[table["data"] == comparison]
            heights = part["rule"].map(places)
            for column, label, colour, marker, shift in _GAINS:
                low, high = part[f"{column}_low"], part[f"{column}_high"]
                axes.hlines(heights + shift, low, high, colors=colour)
                axes.plot(part[column], heights + shift, marker, color=colour, ms=5, label=label)
            axes.axvline(0, color="0.3", linewidth=0.9)
            axes.set_title(str(comparison))
            axes.set_xlabel("points of test accuracy, paired, 95% interval over seeds")
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(list(places.values()), list(places))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _plot_curves(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    part = table[table["data"] == curves["data"].iloc[0]].set_index("rule")
    rules = [rule for rule in part.index if rule != _AVERAGING] or [_AVERAGING]
    drawn = set(curves["rule"])
    with theme():
        rows = math.ceil(len(rules) / _COLUMNS)
        figure = new_figure(3.4 * _COLUMNS, 0.9 + 2.3 * rows)
        grid = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
        for axes, rule in zip(grid.flat, rules, strict=False):
            control = f"yoked to {rule}" if f"yoked to {rule}" in drawn else _FRESH
            _line(axes, curves, _AVERAGING, GREY, "-", "averaging")
            _line(axes, curves, control, ORANGE, "--", "yoked control")
            _line(axes, curves, rule, BLUE, "-", "the rule")
            axes.set_title(rule)
            text = f"{part.loc[rule, 'accepted']:.0%} accepted, {part.loc[rule, 'updates']:.0f}"
            note = {"xycoords": "axes fraction", "fontsize": "small", "color": "0.35"}
            axes.annotate(f"{text} updates", (0.03, 0.04), **note)
            count_axis(axes.xaxis)
        for axes in grid.flat[len(rules) :]:
            axes.set_visible(False)
        for column, axes in enumerate(grid[-1]):
            lowest = axes if axes.get_visible() or rows == 1 else grid[-2][column]
            lowest.set_xlabel("step")
            lowest.tick_params(labelbottom=True)
        figure.supylabel("validation accuracy (%)", fontsize="medium")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.suptitle(f"{curves['data'].iloc[0]}: mean and range of seeds", x=0.01, ha="left")
    return figure


def _line(axes: Axes, curves: pd.DataFrame, rule: str, colour: str, line: str, label: str) -> None:
    part = curves[curves["rule"] == rule].groupby("step")["validation_accuracy"]
    steps = 100 * part.agg(["mean", "min", "max"])
    axes.plot(steps.index, steps["mean"], line, color=colour, label=label)
    axes.fill_between(
        steps.index, steps["min"], steps["max"], color=colour, alpha=0.15, linewidth=0
    )
