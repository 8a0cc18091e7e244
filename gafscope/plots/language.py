"""The figure of the study of a language model: distances over the steps, and leads in loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gafscope.plots.style import BLUE, GREEN, GREY, ORANGE, RED, count_axis, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AVERAGING = "averaging"
_TICKS = {"iid": "at random", "given": "each task\nequally", "single": "one task\neach"}
_COLOURS = (BLUE, GREEN, RED, GREY)
_LEADS = (
    ("under_averaging", "against averaging", BLUE, "o", -0.08),
    ("under_yoked", "against its yoked control", ORANGE, "D", 0.08),
)


def plot_language(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw distances over the steps, their distribution, and what filtering gains.

    Args:
        table: The analysis' table.
        curves: The analysis' curves, those of averaging.

    Returns:
        Figure name -> figure.
    """
    averaging = table[table["rule"] == _AVERAGING]
    with theme():
        figure = new_figure(14, 4.8)
        steps, spread, leads = figure.subplots(1, 3, width_ratios=(1.3, 1, 0.9))
        _draw_steps(steps, averaging, curves)
        _draw_spread(spread, averaging)
        _draw_leads(leads, table)
    return {"language": figure}


def _name(data: str, composition: str) -> str:
    size = data.rpartition(", ")[2]
    return f"{_TICKS.get(composition, composition)}\n{size}"


def _draw_steps(axes: Axes, averaging: pd.DataFrame, curves: pd.DataFrame) -> None:
    for number, row in enumerate(averaging.to_dict("records")):
        colour = _COLOURS[number % len(_COLOURS)]
        part = curves[curves["data"] == f"{row['data']}, composition {row['composition']}"]
        first = part[part["seed"] == part["seed"].min()]
        axes.plot(first["step"], first["distance"], ".", color=colour, alpha=0.35, ms=3)
        rolling = part.groupby("step")["rolling_distance"].mean()
        *words, size = _name(row["data"], row["composition"]).split("\n")
        label = f"{' '.join(words)}, {size}"
        axes.plot(rolling.index, rolling, color=colour, label=label)
    axes.axhline(1, color="0.3", linewidth=0.9, linestyle=":")
    axes.set(
        xlabel="step",
        ylabel="cosine distance of two microbatches",
        ylim=(0, 2),
        title="averaging (points: single steps; lines: over 100)",
    )
    axes.legend(loc="upper left", ncols=2)
    count_axis(axes.xaxis)


def _draw_spread(axes: Axes, averaging: pd.DataFrame) -> None:
    places = range(len(averaging))
    colours = [_COLOURS[place % len(_COLOURS)] for place in places]
    axes.vlines(
        places, averaging["distance_q05"], averaging["distance_q95"], colors=colours, linewidth=4
    )
    labels = (
        ("distance_median", "o", "median; bar: 9 of 10 steps"),
        ("distance_largest", "x", "largest of all"),
    )
    for column, marker, label in labels:
        axes.scatter(places, averaging[column], marker=marker, color="0.15", zorder=3, label=label)
    axes.axhline(1, color="0.3", linewidth=0.9, linestyle=":")
    names = [_name(*key) for key in zip(averaging["data"], averaging["composition"], strict=True)]
    axes.set_xticks(places, names)
    axes.set(ylabel="cosine distance", ylim=(0, 2), xlim=(-0.5, len(names) - 0.5))
    axes.set_title("over the whole training (u: windows a microbatch)")
    axes.legend(loc="upper left")


def _draw_leads(axes: Axes, table: pd.DataFrame) -> None:
    part = table[table["under_yoked"].notna()]
    places = range(len(part))
    for column, label, colour, marker, shift in _LEADS:
        x = [place + shift for place in places]
        axes.vlines(x, part[f"{column}_low"], part[f"{column}_high"], colors=colour)
        axes.plot(x, part[column], marker, color=colour, ms=5, label=label)
    axes.axhline(0, color="0.3", linewidth=0.9)
    several = part["rule"].nunique() > 1
    names = [
        _TICKS.get(str(row["composition"]), "")
        + (f"\n{row['rule']}" if several else "")
        + f"\n({row['accepted']:.0%} kept)"
        for row in part.to_dict("records")
    ]
    axes.set_xticks(places, names)
    axes.set(
        ylabel="nats a byte, paired, 95% interval",
        title="test loss saved by filtering",
        xlim=(-0.5, len(names) - 0.5),
    )
    axes.legend(loc="best")
