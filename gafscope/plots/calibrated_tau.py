"""The figure of the study of calibrated thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gafscope.plots.style import BLUE, GREEN, GREY, RED, count_axis, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROLLING = 100


def plot_calibrated_tau(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw the rules' accuracies, their thresholds over the steps, and what they accept.

    Args:
        table: The analysis' table.
        curves: The analysis' curves.

    Returns:
        Figure name -> figure.
    """
    with theme():
        figure = new_figure(14, 4.6)
        accuracy, tau, accepted = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
        _draw_accuracy(accuracy, table)
        moving = curves[~curves["rule"].str.startswith("yoked")]
        averaging = moving[moving["rule"] == "averaging"].groupby("step")["rolling_distance"].mean()
        tau.plot(averaging.index, averaging, color=GREY, label="distance under averaging")
        rules = [rule for rule in dict.fromkeys(moving["rule"]) if rule != "averaging"]
        for rule, style in _styles(rules).items():
            part = moving[moving["rule"] == rule].groupby("step")[["tau", "rolling_accepted"]]
            part = part.mean()
            line = part["tau"]
            tau.plot(line.index, line, label=rule, **style)
            line = part["rolling_accepted"]
            accepted.plot(line.index, 100 * line, label=rule, **style)
        tau.set(xlabel="step", ylabel="cosine distance", title="threshold")
        accepted.set(
            xlabel="step",
            ylabel="microbatches accepted (%)",
            title=f"acceptance, mean over {_ROLLING} steps",
            ylim=(-3, 103),
        )
        # An adaptive threshold starts at 2, where there is nothing to see.
        known = moving["tau"][moving["tau"] < 1.5]
        tau.set_ylim(
            min(known.min(), averaging.min()) - 0.03, max(known.max(), averaging.max()) + 0.03
        )
        for axes in (tau, accepted):
            count_axis(axes.xaxis)
        figure.legend(*tau.get_legend_handles_labels(), loc="outside lower center", ncols=7)
        figure.suptitle(str(curves["data"].iloc[0]), x=0.01, ha="left")
    return {"calibrated-tau": figure}


def _styles(rules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give the thresholds set by hand one colour; the two that move stand out."""
    moving = {"calibrated GAF": {"color": RED}, "adaptive GAF": {"color": GREEN}}
    by_hand = [rule for rule in rules if rule not in moving]
    lines = ("-", "--", "-.", ":")
    styles: dict[str, dict[str, Any]] = {
        rule: {"color": BLUE, "linestyle": lines[i % 4], "linewidth": 1.1, "alpha": 0.8}
        for i, rule in enumerate(by_hand)
    }
    return styles | {rule: moving[rule] | {"linewidth": 2} for rule in rules if rule in moving}


def _draw_accuracy(axes: Axes, table: pd.DataFrame) -> None:
    """Draw each rule's test accuracy with its interval, and that of its best checkpoint."""
    places = range(len(table), 0, -1)
    shares = 100 * table[["test_accuracy", "test_accuracy_low", "test_accuracy_high"]]
    colours = ["0.55" if rule.startswith("yoked") else "0.1" for rule in table["rule"]]
    axes.hlines(places, shares["test_accuracy_low"], shares["test_accuracy_high"], colors=colours)
    axes.scatter(shares["test_accuracy"], places, c=colours, zorder=3, label="at the end")
    axes.scatter(
        100 * table["best_test_accuracy"],
        places,
        facecolors="white",
        edgecolors=colours,
        marker="D",
        s=22,
        zorder=3,
        label="at the best validation",
    )
    axes.set_yticks(list(places), table["rule"])
    # Few seeds make intervals that leave the possible.
    left, right = axes.get_xlim()
    axes.set(
        xlabel="test accuracy (%), 95% interval over seeds", xlim=(max(left, 0), min(right, 101))
    )
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
