"""The figures of a diagnosis: layers, batch-size curve, single samples, spectrum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gafscope.plots.style import BLUE, GREY, ORANGE, log_axis, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

_MOST_LAYERS = 30
_LONGEST_NAME = 40
_BINS = 40
_LABELS = {
    "class_distance": "mean cosine distance within the given label",
    "mean_distance": "mean cosine distance to all others",
}


def plot_layers(layers: pd.DataFrame) -> Figure:
    """Draw each layer's mean distance with its interval, the one that disagrees most on top.

    Args:
        layers: `layer`, `distance`, `distance_low`, `distance_high`, sorted; of more than 30 the
            first 30 are drawn.

    Returns:
        The figure.
    """
    known = layers.dropna(subset=["distance"])
    shown = known.head(_MOST_LAYERS)
    places = np.arange(len(shown))
    with theme():
        figure = new_figure(7.5, 1.4 + 0.26 * max(len(shown), 4))
        axes = figure.subplots()
        axes.axvline(1, color="0.4", linewidth=1, linestyle="--")
        axes.hlines(places, shown["distance_low"], shown["distance_high"], color=BLUE, linewidth=2)
        axes.plot(shown["distance"], places, "o", color=BLUE)
        names = [str(name) for name in shown["layer"]]
        axes.set_yticks(places, [_short(name) for name in names])
        some = len(shown) < len(known)
        axes.set(
            ylim=(max(len(shown), 2) - 0.4, -0.6),
            xlabel="mean cosine distance, 95% interval (dashed: independent)",
            title=f"the {len(shown)} of {len(known)} layers that disagree most"
            if some
            else "which layers disagree",
        )
    return figure


def plot_curve(measured: pd.DataFrame, predicted: pd.DataFrame, microbatch_size: int) -> Figure:
    """Draw agreement against the microbatch size: what one size predicts, and what was measured.

    Args:
        measured: `u`, `cosine`, `cosine_low`, `cosine_high`.
        predicted: `u`, `cosine`, `low`, `high`; NaN where refused.
        microbatch_size: The size that the prediction was made from.

    Returns:
        The figure.
    """
    known = predicted.dropna(subset=["cosine"])
    with theme():
        figure = new_figure(7.5, 4.4)
        axes = figure.subplots()
        if len(known):
            axes.fill_between(
                known["u"], 1 - known["high"], 1 - known["low"], color=ORANGE, alpha=0.2, lw=0
            )
            label = f"predicted from u = {microbatch_size}"
            axes.plot(known["u"], 1 - known["cosine"], color=ORANGE, label=label)
        ends = np.abs(measured[["cosine_low", "cosine_high"]].to_numpy().T - [measured["cosine"]])
        axes.errorbar(
            *(measured["u"].to_numpy(), 1 - measured["cosine"].to_numpy()),
            yerr=ends[::-1],
            fmt="o",
            color=BLUE,
            capsize=3,
            label="measured",
        )
        axes.axhline(1, color="0.4", linewidth=1, linestyle="--")
        axes.set_xscale("log")
        axes.set_xticks(measured["u"], [f"{u}" for u in measured["u"]])
        axes.minorticks_off()
        axes.set(
            xlabel="microbatch size u (samples)",
            ylabel="mean cosine distance",
            title="agreement of two microbatches, 95% intervals (dashed: independent)"
            + ("" if len(known) else "\nno prediction: the common part may be zero"),
        )
        axes.legend(loc="best")
    return figure


def plot_scores(table: pd.DataFrame, ranked_by: str) -> Figure:
    """Draw how the samples' scores are distributed, flipped and clean apart where known.

    Args:
        table: One row a sample with the score, `loss`, and `flipped` where it is known.
        ranked_by: Name of the score.

    Returns:
        The score's histogram, and the score against the loss.
    """
    known = table.dropna(subset=[ranked_by])
    groups = [("samples", known, GREY)]
    if "flipped" in known:
        flipped = known["flipped"].astype(bool)
        groups = [("label right", known[~flipped], BLUE), ("label flipped", known[flipped], ORANGE)]
    bins = np.histogram_bin_edges(known[ranked_by], _BINS)
    with theme():
        figure = new_figure(11.5, 4.4)
        left, right = figure.subplots(1, 2)
        for name, part, colour in groups:
            label = f"{name} ({len(part):,})"
            left.hist(part[ranked_by], bins, color=colour, alpha=0.6, label=label)
            losses = part["loss"].clip(lower=1e-8)
            right.plot(losses, part[ranked_by], ".", color=colour, alpha=0.5, ms=4)
        label = _LABELS.get(ranked_by, ranked_by)
        left.set(xlabel=label, ylabel="samples", title="disagreement of single samples")
        log_axis(right, "x")
        right.set(xlabel="loss", ylabel=label, title="beside the plain loss")
        left.legend()
    return figure


def plot_spectrum(eigenvalues: ArrayLike, edge: float) -> Figure:
    """Draw the eigenvalues of the micro-gradients' covariance and the edge of the random bulk.

    Args:
        eigenvalues: Largest first.
        edge: Those above it stand out.

    Returns:
        The figure.
    """
    values = np.asarray(eigenvalues, float)
    places = np.arange(1, len(values) + 1)
    above = values > edge
    with theme():
        figure = new_figure(7.5, 4.4)
        axes = figure.subplots()
        axes.plot(places[~above], values[~above], "o", color=GREY, ms=4, label="bulk")
        label = f"stands out ({above.sum()})"
        axes.plot(places[above], values[above], "o", color=BLUE, ms=5, label=label)
        axes.axhline(edge, color=ORANGE, linestyle="--", label="edge of a random bulk")
        axes.set(
            xlabel="rank",
            ylabel="eigenvalue (squared gradient)",
            title="covariance of the microbatches' gradients",
        )
        if (values > 0).all():
            log_axis(axes, "y")
        axes.legend()
    return figure


def _short(name: str) -> str:
    # The end of a parameter's name says most: blocks.11.mlp.weight.
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
