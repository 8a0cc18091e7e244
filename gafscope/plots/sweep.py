"""The figure of a sweep: what was measured against what was varied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gafscope.errors import unknown_name
from gafscope.plots.style import log_axis, new_figure, rule_style, theme

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PANELS = 12
# Rules that have a colour of their own, by the names that settings give them.
_COLOURED = {"gaf": "GAF", "mean": "averaging", "halving-gaf": "HalvingGAF"}
# A span that a logarithmic axis shows better.
_WIDE = 50


def plot_sweep(summary: pd.DataFrame, keys: Sequence[str], measure: str, drawn: bool) -> Figure:
    """Draw a measure against the settings that vary, with its 95% intervals over the seeds.

    Of a grid the number with the most values is the x axis, `rule` (or what else varies) makes the
    lines, and one more setting the panels. Of a search there is one panel a setting, as the others
    vary along.

    Args:
        summary: One row a setting: the keys, the measure, and `<measure>_low` and `<measure>_high`.
        keys: The settings that vary.
        measure: The column to draw.
        drawn: Whether the settings were drawn by a search.

    Returns:
        The figure.

    Raises:
        UserError: If the table lacks a column.
    """
    for column in (*keys, measure):
        if column not in summary:
            raise unknown_name("column", column, map(str, summary.columns))
    factor = 100 if measure.endswith("accuracy") else 1
    label = measure.replace("_", " ") + (" (%)" if factor == 100 else "")
    with theme():
        if drawn:
            return _scatter(summary, keys[:_MOST_PANELS], measure, label, factor)
        return _lines(summary, keys, measure, label, factor)


def _lines(
    summary: pd.DataFrame, keys: Sequence[str], measure: str, label: str, factor: float
) -> Figure:
    x, lines, panels, rest = _roles(summary, keys)
    values = [None] if panels is None else list(dict.fromkeys(summary[panels]))[:_MOST_PANELS]
    figure = new_figure(2.5 + 4.3 * len(values), 4.2)
    grid = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    names = summary[[key for key in (lines, *rest) if key is not None]].apply(_name, axis=1)
    known = list(dict.fromkeys(names)) if lines else []
    looks = rule_style(_COLOURED.get(name, name) for name in known)
    styles = {name: looks[_COLOURED.get(name, name)] for name in known}
    for axes, value in zip(grid, values, strict=True):
        part = summary if panels is None else summary[_equals(summary[panels], value)]
        if lines is None:
            _line(axes, part, x, measure, factor, {"color": "C0"}, None)
        for name, style in styles.items():
            _line(axes, part[names[part.index] == name], x, measure, factor, style, name)
        axes.set(xlabel=x.replace("_", " "), title="" if panels is None else f"{panels} {value}")
        _suit(axes, summary[x])
    grid[0].set_ylabel(label)
    if lines:
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper", title=lines)
    return figure


def _line(
    axes: Axes,
    part: pd.DataFrame,
    x: str,
    measure: str,
    factor: float,
    style: dict[str, Any],
    name: str | None,
) -> None:
    """Draw one line; a setting without an x (a rule without a tau) is a level line."""
    known = part[part[x].notna()].sort_values(x)
    for level in factor * part[part[x].isna()][measure]:
        axes.axhline(level, label=name, linewidth=1.4, **style)
    if known.empty:
        return
    middle = factor * known[measure]
    xs = known[x] if _is_numeric(known[x]) else known[x].astype(str)
    axes.plot(xs, middle, marker="o", markersize=4, label=name, **style)
    if f"{measure}_low" in known and known[f"{measure}_low"].notna().any():
        below = middle - factor * known[f"{measure}_low"]
        above = factor * known[f"{measure}_high"] - middle
        ends = [below.fillna(0), above.fillna(0)]
        axes.errorbar(xs, middle, ends, fmt="none", capsize=3, alpha=0.6, color=style["color"])


def _scatter(
    summary: pd.DataFrame, keys: Sequence[str], measure: str, label: str, factor: float
) -> Figure:
    rows = -(-len(keys) // 4)
    columns = min(len(keys), 4)
    figure = new_figure(3.6 * columns + 0.6, 3.4 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = [axes for line in grid for axes in line]
    best = summary.iloc[[0]]
    for axes, key in zip(panels, keys, strict=False):
        for part, look in ((summary, {"alpha": 0.55}), (best, {"color": "C3", "label": "best"})):
            xs = part[key] if _is_numeric(summary[key]) else part[key].astype(str)
            axes.scatter(xs, factor * part[measure], s=22, **look)
        axes.set_xlabel(key.replace("_", " "))
        _suit(axes, summary[key])
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    for line in grid:
        line[0].set_ylabel(label)
    panels[0].legend()
    return figure


def _roles(
    summary: pd.DataFrame, keys: Sequence[str]
) -> tuple[str, str | None, str | None, list[str]]:
    """Choose the x axis, what makes the lines, what makes the panels, and what joins the lines."""
    varied = [key for key in keys if summary[key].nunique(dropna=False) > 1] or list(keys[:1])
    numeric = [key for key in varied if _is_numeric(summary[key])]
    x = max(numeric, key=lambda key: summary[key].nunique()) if numeric else varied[0]
    others = [key for key in varied if key != x]
    lines = next((key for key in others if key == "rule"), others[0] if others else None)
    others = [key for key in others if key != lines]
    # The first of the rest makes the panels, as long as they stay few.
    few = [key for key in others if summary[key].nunique(dropna=False) <= 6]
    panels = few[0] if few else None
    return x, lines, panels, [key for key in others if key != panels]


def _suit(axes: Axes, values: pd.Series) -> None:
    if not _is_numeric(values) or values.nunique() < 3:
        return
    known = values.dropna()
    if known.min() > 0 and known.max() / known.min() >= _WIDE:
        log_axis(axes, "x")


def _is_numeric(values: pd.Series) -> bool:
    known = [value for value in values if value is not None and value == value]
    return bool(known) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in known
    )


def _equals(values: pd.Series, value: Any) -> pd.Series:
    return values.isna() if value is None or value != value else values == value


def _name(row: pd.Series) -> str:
    first, *rest = (f"{value}" for value in row)
    others = [f"{key} {value}" for key, value in list(row.items())[1:]]
    return ", ".join([first, *others]) if rest else first
