"""The figure of the study of purity: wrong labels in what is accepted, over a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gafscope.plots.style import BLUE, GREEN, GREY, ORANGE, RED, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("any", "flipped_accepted", "accepted", {"color": BLUE, "linestyle": "-", "marker": "o"}),
    ("any", "flipped_rejected", "rejected", {"color": ORANGE, "linestyle": "--", "marker": "D"}),
    (
        "clean",
        "flipped_accepted",
        "accepted after a cleaner first one",
        {"color": GREEN, "linestyle": "-.", "marker": "^"},
    ),
    (
        "corrupted",
        "flipped_accepted",
        "accepted after a worse first one",
        {"color": RED, "linestyle": ":", "marker": "v"},
    ),
)


def plot_purity(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    """Draw the share of wrong labels among what is accepted and rejected, stage by stage.

    Args:
        table: The analysis' table.
        curves: The analysis' curves; unused.

    Returns:
        Figure name -> figure; a row of panels a rule that trains, a column a level.
    """
    rules, levels = (list(dict.fromkeys(table[name])) for name in ("rule", "level"))
    with theme():
        figure = new_figure(5.6 * len(levels), 0.9 + 3.2 * len(rules))
        grid = figure.subplots(len(rules), len(levels), squeeze=False, sharey=True, sharex=True)
        for row, rule in zip(grid, rules, strict=True):
            for axes, level in zip(row, levels, strict=True):
                _draw(axes, table[(table["rule"] == rule) & (table["level"] == level)])
                axes.set_title(f"trained by {rule}: {level}")
            row[0].set_ylabel("wrong labels (%)")
        for axes in grid[-1]:
            axes.set_xlabel("steps made")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        figure.suptitle(f"{table['of'].iloc[0]}: 95% intervals over seeds", x=0.01, ha="left")
    return {"purity": figure}


def _draw(axes: Axes, part: pd.DataFrame) -> None:
    steps = sorted(part["step"].unique())
    base = part[part["first"] == "any"].sort_values("step")
    axes.plot(range(len(steps)), 100 * base["flipped_all"], color=GREY, lw=2.4, label="all of them")
    for number, (first, column, label, look) in enumerate(_LINES):
        own = part[part["first"] == first].set_index("step").reindex(steps)
        x = [i + 0.07 * (number - (len(_LINES) - 1) / 2) for i in range(len(steps))]
        axes.vlines(
            x, 100 * own[f"{column}_low"], 100 * own[f"{column}_high"], colors=look["color"]
        )
        axes.plot(x, 100 * own[column], ms=4, label=label, **look)
    axes.set_xticks(range(len(steps)), [f"{step:,}" for step in steps])
    axes.set_ylim(0, 100)
