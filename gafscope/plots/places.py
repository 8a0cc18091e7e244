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
    ("over_averaging", "lead over averaging", BLUE, "o", -0.05),
    ("over_yoked", "lead over its yoked control", ORANGE, "D", 0.05),
)
# More than two or three bands cannot be told apart.
_UNSHADED = ("yoked control", "same updates", "random skip")
_POINTS = "points of test accuracy, paired"
# Letters along an axis, were all names as long as the longest; more run into each other.
_CROWDED = 50


def plot_places(
    table: pd.DataFrame,
    place: str,
    label: str,
    *,
    name: str,
    factor: float = 1,
    even: bool = False,
    ticks: Mapping[Any, str] | None = None,
    beside: Mapping[str, str] | None = None,
) -> dict[str, Figure]:
    """Draw accuracies and leads of rules by place, one row of panels a data set.

    Args:
        table: From `analyses.conditions.compare`. A rule without a place is drawn as a level, and
            its best checkpoint as a dotted one.
        place: The column of the place.
        label: What the axis of the place says.
        name: The figure's name.
        factor: What values of the place are multiplied by.
        even: Draw the places at even distances, whatever lies between them.
        ticks: What the axis calls places, instead of their value; for places at even distances.
        beside: Column of the table -> what it is, e.g. accuracies published elsewhere; drawn as
            crosses in the colour of the rule.

    Returns:
        The figure by its name; one place is drawn as a chart of rules.
    """
    data = list(dict.fromkeys(table["data"]))
    with theme():
        if len(table[place].dropna().unique()) < 2:
            return {name: _chart(table)}
        figure = new_figure(14, 0.6 + 4 * len(data))
        grid = figure.subplots(len(data), 3, width_ratios=(1.25, 1, 0.9), squeeze=False)
        places = _Places(table, place, factor, even, ticks or {})
        handles: dict[str, Any] = {}
        for row, what in zip(grid, data, strict=True):
            part = table[table["data"] == what]
            accuracy, leads, accepted = row
            _accuracies(accuracy, part, places, beside or {})
            _leads(leads, part, places)
            _accepted(accepted, part, places)
            for axes in row:
                places.label(axes, label)
            if len(data) > 1:
                accuracy.set_title(what)
            for axes in (accuracy, leads):
                found, names = axes.get_legend_handles_labels()
                handles |= dict(zip(names, found, strict=True))
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=6)
    return {name: figure}


class _Places:
    """Where each place lies on the axis: numbers at their value, others side by side."""

    def __init__(
        self,
        table: pd.DataFrame,
        place: str,
        factor: float,
        even: bool,
        ticks: Mapping[Any, str],
    ):
        self._values = list(dict.fromkeys(table[place].dropna()))
        self.column, self._factor, self._ticks = place, factor, ticks
        self.numbers = not even and all(isinstance(value, int | float) for value in self._values)
        spread = max(self._values) - min(self._values) if self.numbers else len(self._values) - 1
        self.step = (factor if self.numbers else 1) * spread / max(len(self._values) - 1, 1)

    def of(self, part: pd.DataFrame) -> list[float]:
        if self.numbers:
            return [self._factor * value for value in part[self.column]]
        return [self._values.index(value) for value in part[self.column]]

    def label(self, axes: Axes, label: str) -> None:
        axes.set_xlabel(label)
        if not self.numbers:
            names = [self._ticks.get(value, _name(value)) for value in self._values]
            axes.set_xticks(range(len(names)), names)
            widest = max(len(line) for name in names for line in name.split("\n"))
            if widest * len(names) > _CROWDED:
                axes.tick_params(axis="x", labelrotation=30)


def _name(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _accuracies(
    axes: Axes, table: pd.DataFrame, places: _Places, beside: Mapping[str, str]
) -> None:
    for rule, style in rule_style(dict.fromkeys(table["rule"])).items():
        part = table[(table["rule"] == rule)]
        everywhere = part[part[places.column].isna()]
        if len(everywhere):
            axes.axhline(100 * everywhere["test_accuracy"].iloc[0], label=rule, **style)
            best, name = everywhere["best_test_accuracy"].iloc[0], f"{rule}, best checkpoint"
            axes.axhline(100 * best, label=name, color=style["color"], linestyle=":")
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


def plot_threshold_sweep(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw the threshold sweep.

    Args:
        table: The analysis' table.
        curves: The analysis' curves; unused.

    Returns:
        Figure name -> figure.
    """
    label = "tau, largest accepted cosine distance"
    return plot_places(table, "threshold", label, name="threshold-sweep", even=True)


def plot_microbatch_count(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw accuracies and leads by the number of microbatches, how often some agree, and the cost.

    Args:
        table: The analysis' table.
        curves: The analysis' curves; unused.

    Returns:
        Figure name -> figure.
    """
    place, label, name = "microbatches", "k, microbatches a step", "microbatch-count"
    figures = plot_places(table, place, label, name=name, even=True)
    places = _Places(table, place, 1, True, {})
    with theme():
        figure = new_figure(10, 4.4)
        agreement, cost = figure.subplots(1, 2)
        own = table[table["rule"] == "GAF"]
        for (data, part), (colour, marker) in zip(
            own.groupby("data", sort=False), ((BLUE, "o"), (ORANGE, "D")), strict=True
        ):
            style = {"color": colour, "marker": marker, "ms": 5}
            agreement.plot(places.of(part), 100 * part["stepped"], label=data, **style)
            cost.plot(places.of(part), part["over_averaging_time"], **style)
        cost.axhline(1, color="0.3", linewidth=0.9)
        agreement.set(ylabel="steps at which some agree (%)", title="GAF")
        cost.set(ylabel="time of a GAF step / averaging step")
        for axes in (agreement, cost):
            places.label(axes, label)
        figure.legend(*agreement.get_legend_handles_labels(), loc="outside lower center")
    return {**figures, "agreement-and-cost": figure}


def plot_microbatch_sweep(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw averaging, GAF with the threshold of each size, and its yoked control.

    Args:
        table: The analysis' table.
        curves: The analysis' curves; unused.

    Returns:
        Figure name -> figure.
    """
    place, label = "microbatch_size", "u, samples a microbatch; tau by validation"
    chosen = table[table["rule"] == "GAF"]
    ticks = {
        size: f"{size}\ntau {tau:g}" for size, tau in zip(chosen[place], chosen["tau"], strict=True)
    }
    part = table[table["rule"].isin(["averaging", "GAF", "yoked control"])]
    return plot_places(part, place, label, name="microbatch-sweep", even=True, ticks=ticks)


def plot_optimizers(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw accuracies and leads by optimizer.

    Args:
        table: The analysis' table.
        curves: The analysis' curves; unused.

    Returns:
        Figure name -> figure.
    """
    return plot_places(table, "optimizer", "optimizer", name="optimizers")
