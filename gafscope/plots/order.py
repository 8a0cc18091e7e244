"""The figure of the study of visiting order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gafscope.plots.style import BLUE, GREY, ORANGE, RED, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    "first": "wrong labels all in the first microbatch",
    "last": "wrong labels all in the last microbatch",
    "anywhere": "wrong labels anywhere",
}
_AVERAGING = "averaging"
_CONTROL = "yoked control"
_SHARES = (
    ("flipped_accepted", "of the flipped ones", RED, "v"),
    ("clean_accepted", "of the clean ones", BLUE, "^"),
    ("accepted", "of all", GREY, "o"),
)


def plot_order(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw accuracies beside those of the yoked controls, and what is accepted, by anchor.

    Args:
        table: The analysis' table.
        curves: The analysis' curves; unused.

    Returns:
        Figure name -> figure; a column of panels for each place of the wrong labels.
    """
    places = list(dict.fromkeys(table["flipped"]))
    rules = [rule for rule in dict.fromkeys(table["rule"]) if not rule.startswith(_CONTROL)]
    heights = {rule: len(rules) - number for number, rule in enumerate(rules)}
    with theme():
        figure = new_figure(4.2 * len(places) + 1.4, 1.9 + 0.62 * len(rules))
        grid = figure.subplots(2, len(places), squeeze=False, sharey=True, sharex="row")
        for column, place in enumerate(places):
            part = table[table["flipped"] == place]
            _draw_accuracies(grid[0][column], part, heights)
            _draw_accepted(grid[1][column], part, heights)
            grid[0][column].set_title(_TITLES.get(place, place))
        for row in grid:
            row[0].set_yticks(list(heights.values()), list(heights))
            for axes in row:
                axes.grid(axis="y", visible=False)
        handles = {
            name: handle
            for axes in grid.flat
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=6)
    return {"order": figure}


def _draw_accuracies(axes: Axes, part: pd.DataFrame, heights: dict[str, int]) -> None:
    for kind, colour, marker, shift in (("rule", BLUE, "o", 0.1), ("control", ORANGE, "D", -0.12)):
        rows = [
            row | {"height": heights[_owner(row["rule"])] + shift}
            for row in part.to_dict("records")
            if row["rule"].startswith(_CONTROL) == (kind == "control")
        ]
        low, high, mean = (
            [100 * row[f"test_accuracy{end}"] for row in rows] for end in ("_low", "_high", "")
        )
        y = [row["height"] for row in rows]
        axes.hlines(y, low, high, colors=colour)
        label = "test accuracy" if kind == "rule" else "that of its yoked control"
        axes.plot(mean, y, marker, color=colour, ms=5, label=label)
    averaging = part[part["rule"] == _AVERAGING]
    if len(averaging):
        best = 100 * averaging["best_test_accuracy"].iloc[0]
        axes.axvline(best, color=GREY, linestyle=":", label="averaging's best checkpoint")
    axes.set_xlabel("test accuracy at the end (%), 95% interval")


def _draw_accepted(axes: Axes, part: pd.DataFrame, heights: dict[str, int]) -> None:
    rules = part[part["rule"].isin(heights) & (part["rule"] != _AVERAGING)]
    for column, label, colour, marker in _SHARES:
        if column not in rules or rules[column].isna().all():
            continue
        y = [heights[rule] for rule in rules["rule"]]
        axes.plot(100 * rules[column], y, marker, color=colour, ms=6, label=f"accepted {label}")
    axes.set(xlabel="accepted microbatches (%)", xlim=(-3, 103))
    axes.set_ylim(0.5, len(heights) + 0.5)


def _owner(rule: str) -> str:
    """Give the rule that a control belongs to, or the rule itself."""
    return "GAF" if rule == _CONTROL else rule.removeprefix(f"{_CONTROL} of ")
