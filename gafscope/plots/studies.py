"""The figures of each analysis, drawn from its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gafscope.plots.adversarial import plot_adversarial
from gafscope.plots.batch_size_curve import plot_batch_size_curve
from gafscope.plots.calibrated_tau import plot_calibrated_tau
from gafscope.plots.composition import plot_composition
from gafscope.plots.dynamics import plot_dynamics
from gafscope.plots.illustration import plot_illustration
from gafscope.plots.language import plot_language
from gafscope.plots.layers import plot_layers
from gafscope.plots.long_run import plot_long_run
from gafscope.plots.metrics_study import plot_metrics
from gafscope.plots.order import plot_order
from gafscope.plots.places import (
    plot_microbatch_count,
    plot_microbatch_sweep,
    plot_noise_sweep,
    plot_optimizers,
    plot_threshold_sweep,
)
from gafscope.plots.purity import plot_purity
from gafscope.plots.rules_study import plot_rules
from gafscope.plots.style import count_axis, new_figure, rule_style, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DEMO_PANELS = (
    ("validation_accuracy", "validation accuracy (%)", 100),
    ("train_accuracy", "train accuracy, given labels (%)", 100),
    ("updates", "updates made", 1),
)
_POINTS = 400
_NOISE_PANELS = (
    ("train_accuracy", "train accuracy (%)", 100),
    ("rolling_distance", "cosine distance", 1),
)


def plot_demo(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw the demo: learning under label noise, and the white-noise pair.

    Args:
        table: The analysis' table.
        curves: The analysis' curves.

    Returns:
        Figure name -> figure.
    """
    noisy = curves["data"].iloc[0]
    part = curves[curves["data"] == noisy]
    with theme():
        figure = new_figure(13, 4.2)
        axes = figure.subplots(1, len(_DEMO_PANELS))
        for panel, (column, label, factor) in zip(axes, _DEMO_PANELS, strict=True):
            _draw(panel, part, column, factor)
            panel.set(xlabel="step", ylabel=label)
        axes[-1].legend(title=_heading(part), loc="upper left")
        figure.suptitle(str(noisy), x=0.01, ha="left")
    white = plot_white_noise(table, curves[curves["data"] != noisy])
    return {"label-noise": figure, **white}


def plot_white_noise(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw train accuracy and distance on white noise beside real data.

    Args:
        table: The analysis' table; unused, the curves tell everything.
        curves: The analysis' curves.

    Returns:
        Figure name -> figure.
    """
    data = list(dict.fromkeys(curves["data"]))
    with theme():
        figure = new_figure(5.6 * len(data), 6.6)
        grid = figure.subplots(len(_NOISE_PANELS), len(data), sharex="col", squeeze=False)
        for column, name in enumerate(data):
            part = curves[curves["data"] == name]
            for row, (value, label, factor) in enumerate(_NOISE_PANELS):
                panel = grid[row][column]
                if value == "rolling_distance":
                    _single_steps(panel, part)
                _draw(panel, part, value, factor)
                panel.set_ylabel(label)
            grid[0][column].set_title(name)
            grid[-1][column].set_xlabel("step")
            grid[0][column].set_ylim(-3, 103)
        grid[0][0].legend(title=_heading(curves), loc="center right")
        grid[-1][0].annotate(
            "points: single steps, lines: means over 100",
            (0.98, 0.03),
            xycoords="axes fraction",
            ha="right",
            fontsize="small",
            color="0.35",
        )
    return {"white-noise": figure}


FIGURES: Mapping[str, Callable[[Any, Any], dict[str, Any]]] = {
    "adversarial": plot_adversarial,
    "batch-size-curve": plot_batch_size_curve,
    "calibrated-tau": plot_calibrated_tau,
    "composition": plot_composition,
    "demo": plot_demo,
    "dynamics": plot_dynamics,
    "illustration": plot_illustration,
    "language": plot_language,
    "layers": plot_layers,
    "long-run": plot_long_run,
    "metrics": plot_metrics,
    "microbatch-count": plot_microbatch_count,
    "microbatch-sweep": plot_microbatch_sweep,
    "noise-sweep": plot_noise_sweep,
    "optimizers": plot_optimizers,
    "order": plot_order,
    "purity": plot_purity,
    "rules": plot_rules,
    "threshold-sweep": plot_threshold_sweep,
    "white-noise": plot_white_noise,
}
"""Analysis name -> function of its table and curves that draws its figures."""


def _heading(curves: pd.DataFrame) -> str | None:
    return "mean and range of seeds" if curves["seed"].nunique() > 1 else None


def _draw(axes: Axes, curves: pd.DataFrame, column: str, factor: float) -> None:
    """Draw the mean over seeds of each rule, and the band of its seeds."""
    known = curves.dropna(subset=[column])
    for rule, style in rule_style(list(dict.fromkeys(known["rule"]))).items():
        steps = known[known["rule"] == rule].groupby("step")[column]
        table = factor * steps.agg(["mean", "min", "max"])
        # More points than the eye can tell apart only make the file large.
        table = table.iloc[:: max(1, len(table) // _POINTS)]
        mean, low, high = (table[name] for name in ("mean", "min", "max"))
        name = "_nolegend_" if column == "rolling_distance" else rule
        axes.plot(mean.index, mean, label=name, linewidth=1.8, **style)
        axes.fill_between(mean.index, low, high, color=style["color"], alpha=0.18, linewidth=0)
    count_axis(axes.xaxis)


def _single_steps(axes: Axes, curves: pd.DataFrame) -> None:
    """Draw single steps of the first seed, thinned to what the eye can take, and tau."""
    for rule, style in rule_style(list(dict.fromkeys(curves["rule"]))).items():
        part = curves[curves["rule"] == rule]
        part = part[part["seed"] == part["seed"].min()]
        for tau in part["tau"].dropna().unique():
            axes.axhline(tau, color=style["color"], linestyle=":", label=f"tau = {tau:g}")
            axes.legend(loc="upper right")
        part = part.iloc[:: max(1, len(part) // _POINTS)]
        axes.plot(part["step"], part["distance"], ".", color=style["color"], alpha=0.25, ms=3)
