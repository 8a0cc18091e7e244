"""What a Gramian costs: by engine and size, and how it grows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gafscope.plots.style import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    log_axis,
    new_figure,
    rule_style,
    theme,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES: Mapping[str, dict[str, Any]] = {
    "plain": {"color": "0.1", "linestyle": "-", "marker": "."},
    "loop": {"color": GREY, "linestyle": "-", "marker": "s"},
    "vmap": {"color": ORANGE, "linestyle": "-", "marker": "^"},
    "ghost": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "ghost:bf16": {"color": SKY, "linestyle": "-", "marker": "o"},
    "ghost:whole": {"color": BLUE, "linestyle": ":", "marker": "x"},
    "auto": {"color": RED, "linestyle": ":", "marker": "x"},
    "opacus": {"color": GREEN, "linestyle": "--", "marker": "v"},
    "torchjd": {"color": PINK, "linestyle": "--", "marker": "D"},
    "backpack": {"color": BROWN, "linestyle": "--", "marker": "P"},
    "GAF step": {"color": BLUE, "linestyle": "-", "marker": "o"},
}
_ROWS = (
    ("plain", "ratio", "Gramian: time\n/ plain pass"),
    ("plain", "memory_ratio", "Gramian: peak memory\n/ plain pass"),
    ("averaging step", "ratio", "GAF step: time\n/ averaging step"),
)
_GROWTHS = {"n": "n samples", "k": "k microbatches", "P": "P parameters"}


def plot_engine_cost(table: pd.DataFrame) -> dict[str, Figure]:
    """Draw time and memory of per-sample Gramians against n, and of microbatches.

    Args:
        table: Columns as `gafscope cost --what engines` writes them.

    Returns:
        Figure name -> figure; without "microbatches" where none were measured, and empty where
        nothing was.
    """
    shown = table[table["method"] != table["base"]].dropna(subset=["ratio"])
    single = shown[shown["u"] == 1]
    several = shown[(shown["u"] > 1) & (shown["base"] == "plain")]
    figures = {}
    if len(single):
        figures["engines"] = _samples_figure(single)
    if len(several):
        figures["microbatches"] = _microbatch_figure(several)
    return figures


def plot_growth_cost(table: pd.DataFrame, slopes: pd.DataFrame) -> dict[str, Figure]:
    """Draw time against n, k and P, both axes logarithmic.

    Args:
        table: One row a size and method: `growth`, `size`, `method`, `seconds` with quartiles.
        slopes: One row a series and method: `growth`, `method`, `slope`.

    Returns:
        Figure name -> figure; empty where nothing was measured.
    """
    timed = table.dropna(subset=["seconds"])
    growths = [name for name in _GROWTHS if (timed["growth"] == name).any()]
    if not growths:
        return {}
    slope = {(row.growth, row.method): row.slope for row in slopes.itertuples()}
    with theme():
        figure = new_figure(4.3 * len(growths), 4.4)
        grid = figure.subplots(1, len(growths), sharey=True, squeeze=False)
        for axes, growth in zip(grid[0], growths, strict=True):
            part = timed[timed["growth"] == growth]
            for method, line in _lines(part):
                power = slope.get((growth, method))
                label = method if power is None else f"{method}: slope {power:.2f}"
                _draw(axes, line, "size", "seconds", label, method)
            axes.set(xscale="log", yscale="log", xlabel=_GROWTHS[growth])
            _size_ticks(axes, part["size"])
            axes.legend(loc="upper left")
        # All panels share the y axis; room for the legends above the lines.
        low, high = grid[0][0].get_ylim()
        grid[0][0].set_ylim(low, high * (high / low) ** 0.35)
        log_axis(grid[0][0], "y")
        grid[0][0].set_ylabel("seconds")
    return {"growth": figure}


def plot_ranks_cost(table: pd.DataFrame) -> dict[str, Figure]:
    """Draw what agreement is predicted to cost by the number of ranks.

    Args:
        table: One row a kind, size, number of ranks and group size.

    Returns:
        Figure name -> figure.
    """
    kinds = list(dict.fromkeys(table["kind"]))
    sizes = list(dict.fromkeys(table["numbers"]))
    panels = (("bytes_ratio", "bytes a rank sends, over plain"), ("step_ratio", "step, over plain"))
    with theme():
        figure = new_figure(5.2 * len(kinds), 7)
        grid = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
        styles = rule_style(f"{size / 1e6:,.0f} million numbers" for size in sizes)
        for row, (column, label) in zip(grid, panels, strict=True):
            for axes, kind in zip(row, kinds, strict=True):
                for size, (name, style) in zip(sizes, styles.items(), strict=True):
                    part = table[(table["kind"] == kind) & (table["numbers"] == size)]
                    whole = part[part["group"] == 1]
                    axes.plot(whole["ranks"], whole[column], marker="o", ms=4, label=name, **style)
                    grouped = part[part["group"] > 1]
                    look = {"color": style["color"], "marker": "D", "mfc": "white", "ls": ":"}
                    label_of = f"{name}, groups averaged" if len(grouped) else "_nolegend_"
                    axes.plot(grouped["ranks"], grouped[column], label=label_of, **look)
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter("{x:,.0f}")
            row[0].set_ylabel(label)
            log_axis(row[0], "y")
        for axes, kind in zip(grid[0], kinds, strict=True):
            axes.set_title(kind)
        for axes in grid[-1]:
            axes.set_xlabel("ranks")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return {"ranks": figure}


def _samples_figure(single: pd.DataFrame) -> Figure:
    models = list(dict.fromkeys(single["model"]))
    rows = [row for row in _ROWS if len(single[single["base"] == row[0]][row[1]].dropna())]
    with theme():
        figure = new_figure(2.0 + 2.9 * len(models), 2.6 * len(rows))
        grid = figure.subplots(len(rows), len(models), squeeze=False, sharey="row", sharex=True)
        handles: dict[str, Any] = {}
        for axes_row, (base, column, label) in zip(grid, rows, strict=True):
            for axes, model in zip(axes_row, models, strict=True):
                part = single[(single["model"] == model) & (single["base"] == base)]
                for method, line in _lines(part):
                    handles |= {method: _draw(axes, line, "n", column, method, method)}
                if column == "ratio":
                    handles |= {"floor by FLOPs": _floor(axes, part, "n")}
                axes.set_xscale("log")
                axes.axhline(1, color="0.4", linewidth=0.9, zorder=1)
                _size_ticks(axes, single["n"])
            axes_row[0].set_ylabel(label)
            log_axis(axes_row[0], "y")
        for axes, model in zip(grid[0], models, strict=True):
            axes.set_title(model)
        for axes in grid[-1]:
            axes.set_xlabel("n samples")
        # The GAF step has a row of its own, which names it.
        handles.pop("GAF step", None)
        handles["floor by FLOPs"] = handles.pop("floor by FLOPs")  # last
        figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    return figure


def _microbatch_figure(several: pd.DataFrame) -> Figure:
    models = list(dict.fromkeys(several["model"]))
    sizes = list(dict.fromkeys(zip(several["k"], several["u"], strict=True)))
    place = {size: x for x, size in enumerate(sizes)}
    methods = list(dict.fromkeys(several["method"]))
    with theme():
        figure = new_figure(2.0 + 2.9 * len(models), 3.2)
        grid = figure.subplots(1, len(models), squeeze=False, sharey=True)
        handles: dict[str, Any] = {}
        for axes, model in zip(grid[0], models, strict=True):
            part = several[several["model"] == model]
            for method, line in _lines(part):
                # Side by side, or the error bars of equal ratios would hide each other.
                shift = 0.16 * (methods.index(method) - (len(methods) - 1) / 2)
                x = [place[size] + shift for size in zip(line["k"], line["u"], strict=True)]
                points = _draw(axes, line.assign(x=x), "x", "ratio", method, method, line="none")
                handles |= {method: points}
            axes.set_title(model)
            axes.set_xticks(range(len(sizes)), [f"{k} x {u}" for k, u in sizes])
            axes.set(xlim=(-0.5, len(sizes) - 0.5), xlabel="k microbatches x u samples")
            axes.grid(visible=False, axis="x")
            axes.axhline(1, color="0.4", linewidth=0.9, zorder=1)
        log_axis(grid[0][0], "y")
        grid[0][0].set_ylabel("Gramian: time\n/ plain pass")
        figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    return figure


def _lines(part: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    for method in dict.fromkeys(part["method"]):
        yield str(method), part[part["method"] == method]


def _draw(
    axes: Axes, rows: pd.DataFrame, x: str, y: str, label: str, method: str, line: str = ""
) -> Any:
    """Draw medians, with the quartiles as error bars where the table has them."""
    style: dict[str, Any] = dict(
        _STYLES.get(method) or rule_style([method])[method] | {"marker": "*"}
    )
    style |= {"linestyle": line} if line else {}
    bars = None
    if f"{y}_low" in rows:
        bars = [rows[y] - rows[f"{y}_low"], rows[f"{y}_high"] - rows[y]]
    return axes.errorbar(
        rows[x], rows[y], yerr=bars, label=label, markersize=5, linewidth=1.6, capsize=2, **style
    )


def _floor(axes: Axes, part: pd.DataFrame, x: str) -> Any:
    floor = part.dropna(subset=["floor"]).drop_duplicates(x)
    (line,) = axes.plot(
        floor[x], floor["floor"], color="black", linestyle=":", marker="_", linewidth=1.4
    )
    return line


def _size_ticks(axes: Axes, sizes: Iterable[int]) -> None:
    """Write the measured sizes along the x axis: 16, 64, 94k."""
    from matplotlib.ticker import NullLocator

    ticks = sorted(set(sizes))
    axes.set_xticks(ticks, [_short(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    # A single size stands in the middle.
    axes.set_xlim(ticks[0] / 1.2, ticks[-1] * 1.2)


def _short(count: int) -> str:
    if count < 10_000:
        return str(count)
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.1f}M"
