"""The figure of the batch-size study: distance by microbatch size, and the noise scale by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gafscope.plots.style import BLUE, GREY, ORANGE, log_axis, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_batch_size_curve(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw distances measured and predicted at each stage, and the noise scale over training.

    Args:
        table: The analysis' table.
        curves: The analysis' curves: the noise scale of each seed and step.

    Returns:
        Figure name -> figure.
    """
    distances = table[table["kind"] == "distance"]
    stages = list(dict.fromkeys(distances["step"]))
    with theme():
        figure = new_figure(3.4 * len(stages) + 4.4, 4.2)
        *panels, last = figure.subplots(1, len(stages) + 1, width_ratios=[1] * len(stages) + [1.25])
        for axes, step in zip(panels, stages, strict=True):
            _draw_stage(axes, distances[distances["step"] == step], step)
        panels[0].set_ylabel("mean cosine distance of two microbatches")
        panels[0].legend(loc="lower left")
        _draw_scales(last, table[table["kind"] == "noise scale"], curves)
        figure.suptitle(str(table["data"].iloc[0]), x=0.01, ha="left")
    return {"batch-size-curve": figure}


def _draw_stage(axes: Axes, part: pd.DataFrame, step: float) -> None:
    known = part.dropna(subset=["predicted"])
    shade = {"color": ORANGE, "alpha": 0.2, "linewidth": 0}
    axes.plot(known["u"], known["predicted"], color=ORANGE, label="predicted from one Gramian")
    axes.fill_between(known["u"], known["predicted_low"], known["predicted_high"], **shade)
    axes.vlines(part["u"], part["measured_low"], part["measured_high"], colors=BLUE)
    axes.plot(part["u"], part["measured"], "o", color=BLUE, ms=5, label="measured")
    axes.axhline(1, color="0.5", linewidth=0.9, linestyle=":")
    refused = f"; {part['refused'].iloc[0]} of {part['seeds'].iloc[0]} refused"
    axes.set_title(f"after {step:,.0f} steps{refused if part['refused'].iloc[0] else ''}")
    axes.set(xlabel="samples in a microbatch", ylim=(0, 1.12))
    log_axis(axes, "x")


def _draw_scales(axes: Axes, table: pd.DataFrame, curves: pd.DataFrame) -> None:
    """Draw each seed with its own interval, the mean, and what was refused along the top."""
    # A logarithmic axis has no step 0.
    seeds = list(dict.fromkeys(curves["seed"]))
    for number, seed in enumerate(seeds):
        part = curves[(curves["seed"] == seed) & ~curves["refused"] & (curves["step"] > 0)]
        x = part["step"] * (1 + 0.05 * (number - (len(seeds) - 1) / 2))
        label = "each seed, with its own interval" if number == 0 else None
        axes.vlines(x, part["low"], part["high"], colors=GREY, linewidth=1)
        axes.plot(x, part["predicted"], "o", color=GREY, ms=3, label=label)
    mean = table[table["step"] > 0].dropna(subset=["noise_scale"])
    axes.plot(mean["step"], mean["noise_scale"], color=BLUE, label="mean over seeds")
    refused = curves[curves["refused"] & (curves["step"] > 0)].groupby("step").size()
    top = np.full(len(refused), 0.95)
    axes.plot(
        refused.index,
        top,
        "x",
        color="black",
        transform=axes.get_xaxis_transform(),
        label="refused for some seeds or all",
    )
    axes.set(xlabel="step", title="noise scale over the training")
    axes.set_ylabel("B_simple (samples)")
    log_axis(axes, "x")
    if len(mean):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low / (high / low) ** 0.25, high * (high / low) ** 0.1)
        log_axis(axes, "y")
    axes.legend(loc="lower right")
