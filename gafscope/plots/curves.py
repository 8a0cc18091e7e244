"""Rules against each other: one line a rule, one band for its seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gafscope.errors import unknown_name
from gafscope.plots.style import count_axis, new_figure, rule_style, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def plot_comparison(table: pd.DataFrame, value: str, ylabel: str, title: str) -> Figure:
    """Draw one value over the steps for several rules and seeds.

    Args:
        table: One row a rule, seed and step: columns `rule`, `seed`, `step` and `value`. Rows
            without a value are passed over.
        value: Name of the column to draw.
        ylabel: Label of the y axis, with its unit.
        title: Title of the figure.

    Returns:
        For each rule the mean over its seeds and, with several seeds, a band from the smallest
        to the largest of them.

    Raises:
        UserError: The table lacks a column.
    """
    for column in ("rule", "seed", "step", value):
        if column not in table:
            raise unknown_name("column", column, map(str, table.columns))
    known = table.dropna(subset=[value])
    rules = list(dict.fromkeys(table["rule"]))
    with theme():
        figure = new_figure(8.6, 4.4)
        axes = figure.subplots()
        for rule, style in rule_style(rules).items():
            part = known[known["rule"] == rule]
            if part.empty:
                continue
            steps = part.groupby("step")[value].agg(["mean", "min", "max"])
            marker = "o" if len(steps) == 1 else None
            seeds = part["seed"].nunique()
            label = f"{rule} ({seeds} seeds)" if seeds > 1 else rule
            axes.plot(steps.index, steps["mean"], label=label, marker=marker, **style)
            if seeds > 1:
                shade = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
                axes.fill_between(steps.index, steps["min"], steps["max"], **shade)
        axes.set(xlabel="step", ylabel=ylabel, title=title)
        count_axis(axes.xaxis)
        if not known.empty:
            heading = "mean and range of seeds" if known["seed"].nunique() > 1 else None
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title=heading)
    return figure
