"""The figure of the illustration: micro-gradients as arrows in the plane of two directions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gafscope.plots.style import BLUE, ORANGE, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EXAMPLES = ("aligned", "conflicting")
_LOOKS = {
    "accepted": {"color": BLUE, "linestyle": "-"},
    "rejected": {"color": ORANGE, "linestyle": "--"},
    "update": {"color": "black", "linestyle": "-"},
}


def plot_illustration(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw the examples of the first seed, one column a stage and one row an example.

    Args:
        table: The analysis' table.
        curves: The micro-gradients of the examples.

    Returns:
        Figure name -> figure.
    """
    first = curves[curves["seed"] == curves["seed"].min()]
    steps = sorted(first["step"].unique())
    with theme():
        figure = new_figure(3.9 * len(steps) + 0.4, 8.6)
        grid = figure.subplots(2, len(steps), squeeze=False)
        for column, step in enumerate(steps):
            for row, example in zip(grid, _EXAMPLES, strict=True):
                part = first[(first["step"] == step) & (first["example"] == example)]
                _draw(row[column], part, f"after {step:,} steps, {example}")
        for axes in grid[-1]:
            axes.set_xlabel("first principal direction (gradient norm)")
        for row in grid:
            row[0].set_ylabel("second principal direction (gradient norm)")
        handles = [grid[0][0].plot([], [], label=name, **look)[0] for name, look in _LOOKS.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        figure.suptitle(str(table["data"].iloc[0]), x=0.01, ha="left")
    return {"illustration": figure}


def _draw(axes: Axes, part: pd.DataFrame, title: str) -> None:
    whole = part.iloc[0]
    arrows = [
        (row["x"], row["y"], "accepted" if row["accepted"] else "rejected", f"{row['row'] + 1:.0f}")
        for row in part.to_dict("records")
    ]
    if whole["stepped"]:
        kept = part[part["accepted"]]
        arrows.append((kept["x"].mean(), kept["y"].mean(), "update", ""))
    reach = 1.25 * float(part[["x", "y"]].abs().to_numpy().max())
    for x, y, kind, name in arrows:
        look = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.8, **_LOOKS[kind]}
        axes.annotate("", xy=(x, y), xytext=(0, 0), arrowprops=look)
        beyond = 1 + 0.09 * reach / max(math.hypot(x, y), 1e-12)
        axes.text(beyond * x, beyond * y, name, ha="center", va="center", fontsize=9)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    skipped = "" if whole["stepped"] else "; update skipped"
    axes.set_title(
        f"{title}\nmean distance {whole['distance']:.2f}{skipped}\n"
        f"{whole['kept']:.0%} of the squared length is in this plane",
        fontsize="small",
    )
