"""The figures of the study of metrics."""

from __future__ import annotations

import math
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from gafscope.plots.style import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    log_axis,
    new_figure,
    rule_style,
    theme,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 5
# Metrics that span orders of magnitude while a network learns, and are never negative.
_LOGARITHMIC = ("gradient_diversity", "norm_test", "noise_scale")
_HIGHLIGHTED = "loss"
_SCORE_COLOURS = (ORANGE, BLUE, GREY, GREEN, BROWN, PINK, SKY)
_SCORE_LINES = ("-", "--", "-.", ":")


def plot_metrics(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw the metrics over the steps, their rank correlations, and the scores' AUROC.

    Args:
        table: The analysis' table; unused, the curves tell everything.
        curves: The analysis' curves: one row a rule, seed, stage and name, and one a pair of
            metrics.

    Returns:
        Figure name -> figure; without "flipped-labels" where none was flipped.
    """
    figures = {
        "metrics": _plot_metrics(curves[curves["kind"] == "metric"]),
        "correlations": _plot_correlations(curves[curves["kind"] == "correlation"]),
    }
    scores = curves[curves["kind"] == "score"]
    return figures if scores.empty else figures | {"flipped-labels": _plot_scores(scores)}


def _plot_metrics(curves: pd.DataFrame) -> Figure:
    names = list(dict.fromkeys(curves["name"]))
    rows = math.ceil(len(names) / _COLUMNS)
    with theme():
        figure = new_figure(3.1 * _COLUMNS, 1 + 2 * rows)
        grid = figure.subplots(rows, _COLUMNS, sharex=True, squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            part = curves[curves["name"] == name]
            for rule, style in rule_style(dict.fromkeys(part["rule"])).items():
                _band(axes, part[part["rule"] == rule], rule, style)
            axes.set_title(name.replace("_", " "))
            _step_axis(axes, curves["step"].max())
            if name in _LOGARITHMIC and (part["value"] > 0).any():
                log_axis(axes, "y")
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("steps made")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.suptitle(f"{curves['data'].iloc[0]}: mean and range of seeds", x=0.01, ha="left")
    return figure


def _plot_correlations(curves: pd.DataFrame) -> Figure:
    import seaborn as sns

    names = list(dict.fromkeys(curves["name"]))
    matrix = curves.pivot_table(index="name", columns="other", values="value", dropna=False)
    matrix = matrix.reindex(index=names, columns=names)
    with theme():
        figure = new_figure(2.6 + 0.5 * len(names), 2 + 0.42 * len(names))
        axes = figure.subplots()
        sns.heatmap(
            100 * matrix,
            ax=axes,
            cmap="vlag",
            vmin=-100,
            vmax=100,
            annot=True,
            fmt=".0f",
            annot_kws={"fontsize": 7},
            cbar_kws={"label": "Spearman's rank correlation x 100"},
            linewidths=0.5,
        )
        labels = [name.replace("_", " ") for name in names]
        axes.set_xticklabels(labels, rotation=45, ha="right")
        axes.set_yticklabels(labels, rotation=0)
        axes.set(xlabel="", ylabel="", title="Do two metrics order the stages of training alike?")
    return figure


def _plot_scores(curves: pd.DataFrame) -> Figure:
    rules = list(dict.fromkeys(curves["rule"]))
    names = list(dict.fromkeys(curves["name"]))
    others = [name for name in names if name != _HIGHLIGHTED]
    styles = {
        name: {"color": colour, "linestyle": line}
        for name, colour, line in zip(others, cycle(_SCORE_COLOURS), cycle(_SCORE_LINES))
    }
    styles[_HIGHLIGHTED] = {"color": "black", "linestyle": "-"}
    with theme():
        figure = new_figure(5.6 * len(rules), 4.8)
        panels = figure.subplots(1, len(rules), sharey=True, squeeze=False)[0]
        for axes, rule in zip(panels, rules, strict=True):
            part = curves[curves["rule"] == rule]
            for name, style in styles.items():
                label = name.replace("_", " ")
                _band(axes, part[part["name"] == name], label, style)
            axes.axhline(0.5, color="0.6", linewidth=0.9)
            axes.set_title(f"{part['data'].iloc[0]}, {rule}")
            axes.set_xlabel("steps made")
            _step_axis(axes, curves["step"].max())
        panels[0].set_ylabel("AUROC for flipped labels")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _band(axes: Axes, curves: pd.DataFrame, label: str, style: dict[str, Any]) -> None:
    """Draw the mean over seeds and their range."""
    finite = curves[np.isfinite(curves["value"])]
    steps = finite.groupby("step")["value"].agg(["mean", "min", "max"])
    width = 2.4 if label == _HIGHLIGHTED else 1.6
    axes.plot(steps.index, steps["mean"], label=label, marker=".", linewidth=width, **style)
    axes.fill_between(
        steps.index, steps["min"], steps["max"], color=style["color"], alpha=0.15, linewidth=0
    )


def _step_axis(axes: Axes, last: float) -> None:
    """Show step 0 and then powers of ten."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    ticks = [0, *(10**power for power in range(math.floor(math.log10(max(last, 1))) + 1))]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-0.1, 1.3 * last)
