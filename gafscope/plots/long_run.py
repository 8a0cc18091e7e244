"""Figure of the long run: train and validation accuracy, and the updates made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gafscope.plots.style import count_axis, new_figure, rule_style, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = (
    ("train_accuracy", "train accuracy, given labels (%)", 100),
    ("validation_accuracy", "validation accuracy (%)", 100),
    ("updates", "updates made", 1),
)


def plot_long_run(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw the long run, with the best checkpoint by validation of each rule.

    Args:
        table: The analysis' table.
        curves: The analysis' curves.

    Returns:
        Figure name -> figure.
    """
    with theme():
        figure = new_figure(14, 4.6)
        axes = figure.subplots(1, len(_PANELS))
        for panel, (column, label, factor) in zip(axes, _PANELS, strict=True):
            _draw(panel, curves, column, factor)
            panel.set(xlabel="step", ylabel=label)
            count_axis(panel.xaxis)
        _mark_best(axes[1], table)
        axes[0].set_title("mean and range of seeds")
        axes[1].set_title("diamonds: mean best validation")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return {"long-run": figure}


def _draw(axes: Axes, curves: pd.DataFrame, column: str, factor: float) -> None:
    """Draw the mean over seeds of each rule and the band of its seeds, while all seeds last."""
    known = curves.dropna(subset=[column])
    for rule, style in rule_style(list(dict.fromkeys(known["rule"]))).items():
        part = known[known["rule"] == rule]
        steps = factor * part.groupby("step")[column].agg(["mean", "min", "max"])
        steps = steps[steps.index <= part.groupby("seed")["step"].max().min()]
        axes.plot(steps.index, steps["mean"], label=rule, linewidth=1.8, **style)
        axes.fill_between(
            steps.index, steps["min"], steps["max"], color=style["color"], alpha=0.15, linewidth=0
        )


def _mark_best(axes: Axes, table: pd.DataFrame) -> None:
    for rule, style in rule_style(table["rule"]).items():
        if rule == "same updates":  # it is the beginning of averaging, and would hide its mark
            continue
        row = table[table["rule"] == rule].iloc[0]
        axes.plot(
            row["best_step"],
            100 * row["best_validation_accuracy"],
            "D",
            markersize=6,
            markeredgecolor="white",
            color=style["color"],
        )
