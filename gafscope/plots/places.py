"""Figures of studies that sweep one thing: accuracy and leads by place, rules side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gafscope.plots.style import BLUE, ORANGE, new_figure, rule_style, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEADS = (
    ("over_averaging", "over averaging", BLUE, "o", -0.05),
    ("over_yoked", "over its yoked control", ORANGE, "D", 0.05),
)
# More than two or three bands cannot be told apart.
_UNSHADED = ("yoked control", "same updates", "random skip")
_POINTS = "points of test accuracy, paired"


def plot_places(
    table: pd.DataFrame,
    place: str,
    label: str,
    *,
    name: str,
    factor: float = 1,
    beside: Mapping[str, str] | None = None,
) -> dict[str, Figure]:
    """Draw accuracies and leads of rules by place.

    Args:
        table: From `analyses.conditions.compare`.
        place: The column of the place.
        label: What the axis of the place says.
        name: The figure's name.
        factor: What values of the place are multiplied by.
        beside: Column of the table -> what it is, e.g. accuracies published elsewhere; drawn as
            crosses in the colour of the rule.

    Returns:
        The figure by its name; one place is drawn as a chart of rules.
    """
    values = table[place].dropna().unique()
    with theme():
        if len(values) < 2:
            return {name: _chart(table)}
        figure = new_figure(14, 4.6)
        accuracy, leads, accepted = figure.subplots(1, 3, width_ratios=(1.25, 1, 0.9))
        places = _Places(table, place, factor)
        _accuracies(accuracy, table, places, beside or {})
        _leads(leads, table, places)
        _accepted(accepted, table, places)
        for axes in (accuracy, leads, accepted):
            places.label(axes, label)
        figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return {name: figure}


class _Places:
    """Where each place lies on the axis: numbers at their value, words side by side."""

    def __init__(self, table: pd.DataFrame, place: str, factor: float):
        self._values = list(dict.fromkeys(table[place].dropna()))
        self._column, self._factor = place, factor
        self.numbers = all(isinstance(value, int | float) for value in self._values)
        spread = max(self._values) - min(self._values) if self.numbers else len(self._values) - 1
        self.step = (factor if self.numbers else 1) * spread / max(len(self._values) - 1, 1)

    def of(self, part: pd.DataFrame) -> list[float]:
        if self.numbers:
            return [self._factor * value for value in part[self._column]]
        return [self._values.index(value) for value in part[self._column]]

    def label(self, axes: Axes, label: str) -> None:
        axes.set_xlabel(label)
        if not self.numbers:
            axes.set_xticks(range(len(self._values)), list(map(str, self._values)))


def _accuracies(
    axes: Axes, table: pd.DataFrame, places: _Places, beside: Mapping[str, str]
) -> None:
    for rule, style in rule_style(dict.fromkeys(table["rule"])).items():
        part = table[(table["rule"] == rule)]
        everywhere = part[part[places._column].isna()]
        if len(everywhere):
            axes.axhline(100 * everywhere["test_accuracy"].iloc[0], label=rule, **style)
            continue
        x = places.of(part)
        axes.plot(x, 100 * part["test_accuracy"], label=rule, marker="o", ms=4, **style)
        for column in beside:
            if part[column].notna().any():
                axes.plot(x, 100 * part[column], "x", color=style["color"], ms=6)
        if rule in _UNSHADED:
            continue
        low, high = (100 * part[f"test_accuracy_{end}"] for end in ("low", "high"))
        axes.fill_between(x, low.clip(0), high.clip(upper=100), color=style["color"], alpha=0.12)
    for what in beside.values():
        axes.plot([], [], "x", color="0.3", label=what)
    axes.set(ylabel="test accuracy at the end (%)", title="mean and 95% interval over seeds")


def _leads(axes: Axes, table: pd.DataFrame, places: _Places) -> None:
    part = table[table["over_yoked"].notna()] if "over_yoked" in table else table.iloc[:0]
    for column, label, colour, marker, shift in _LEADS:
        if column not in part or part.empty:
            continue
        x = [value + shift * places.step for value in places.of(part)]
        axes.vlines(x, part[f"{column}_low"], part[f"{column}_high"], colors=colour)
        axes.plot(x, part[column], marker, color=colour, ms=5, label=label)
    axes.axhline(0, color="0.3", linewidth=0.9)
    axes.set(ylabel=_POINTS, title="lead of filtering, 95% interval")
    axes.legend(loc="best")


def _accepted(axes: Axes, table: pd.DataFrame, places: _Places) -> None:
    part = table[table["over_yoked"].notna()] if "over_yoked" in table else table.iloc[:0]
    for rule, style in rule_style(dict.fromkeys(part["rule"])).items():
        own = part[part["rule"] == rule]
        axes.plot(places.of(own), 100 * own["accepted"], marker="o", ms=4, label=rule, **style)
    axes.set(
        ylabel="microbatches accepted (%)", title="what filtering lets through", ylim=(-3, 103)
    )


def _chart(table: pd.DataFrame) -> Figure:
    """Draw the rules of one place below each other."""
    figure = new_figure(12, 1.6 + 0.34 * len(table))
    accuracy, leads = figure.subplots(1, 2, sharey=True)
    heights = list(range(len(table), 0, -1))
    styles = rule_style(table["rule"])
    colours = [styles[rule]["color"] for rule in table["rule"]]
    low, high = (100 * table[f"test_accuracy_{end}"] for end in ("low", "high"))
    accuracy.hlines(heights, low, high, colors=colours)
    accuracy.scatter(100 * table["test_accuracy"], heights, c=colours, zorder=3, label="at the end")
    best: Any = 100 * table["best_test_accuracy"]
    accuracy.scatter(
        best,
        heights,
        marker="D",
        s=22,
        facecolors="white",
        edgecolors=colours,
        zorder=3,
        label="at the best validation",
    )
    accuracy.set_yticks(heights, table["rule"].tolist())
    accuracy.set_xlabel("test accuracy (%), 95% interval over seeds")
    accuracy.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    for column, label, colour, marker, shift in _LEADS:
        if column not in table:
            continue
        y = [height - shift for height in heights]
        leads.hlines(y, table[f"{column}_low"], table[f"{column}_high"], colors=colour)
        leads.plot(table[column], y, marker, color=colour, ms=5, label=label)
    leads.axvline(0, color="0.3", linewidth=0.9)
    leads.set_xlabel(f"{_POINTS}, 95% interval")
    leads.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    for axes in (accuracy, leads):
        axes.grid(axis="y", visible=False)
    return figure


def plot_noise_sweep(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw the noise sweep.

    Args:
        table: The analysis' table.
        curves: The analysis' curves; unused.

    Returns:
        Figure name -> figure.
    """
    label = "wrong training labels (%)"
    beside = {"paper_accuracy": "the paper's (ResNet18, CIFAR-100)"}
    return plot_places(table, "noise", label, name="noise-sweep", factor=100, beside=beside)
