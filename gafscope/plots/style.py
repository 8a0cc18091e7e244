"""The one look of every figure: theme, colours, line styles, and how a figure is saved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gafscope.records.files import atomic_write, write_failure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# seaborn's "colorblind" palette.
BLUE, ORANGE, GREEN, RED = "#0173b2", "#de8f05", "#029e73", "#d55e00"
PINK, BROWN, GREY, SKY = "#cc78bc", "#ca9161", "#949494", "#56b4e9"

RULE_COLOURS = {
    "averaging": GREY,
    "GAF": BLUE,
    "HalvingGAF": SKY,
    "yoked control": ORANGE,
    "random skip": PINK,
    "same updates": GREEN,
}
"""The colour of each rule, the same in every figure."""

RULE_LINES = {
    "averaging": "-",
    "GAF": "-",
    "HalvingGAF": "--",
    "yoked control": "--",
    "random skip": ":",
    "same updates": "-.",
}
"""The line style of each rule, so that a print without colours can be read."""

_SPARE_COLOURS = (RED, BROWN, "#ece133", "#fbafe4")
_SPARE_LINES = ("-", "--", "-.", ":")
_SALT = "gafscope"
# Which multiples of the powers of ten a logarithmic axis shows, by the ratio of its ends.
_LOG_STEPS = {5: (1, 1.2, 1.5, 2, 3, 4, 5, 7), 1000: (1, 2, 5)}


def rule_style(rules: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Choose colour and line style for each rule of one figure.

    Args:
        rules: Names of rules; those without a colour of their own take the spare ones in the
            order given.

    Returns:
        Name -> `{"color": ..., "linestyle": ...}`, ready for matplotlib.
    """
    styles: dict[str, dict[str, Any]] = {}
    spare = 0
    for rule in rules:
        if rule in RULE_COLOURS:
            styles[rule] = {"color": RULE_COLOURS[rule], "linestyle": RULE_LINES[rule]}
            continue
        # The line style moves on with each round of colours, so that 16 rules stay apart.
        turn, place = divmod(spare, len(_SPARE_COLOURS))
        line = _SPARE_LINES[(place + turn) % len(_SPARE_LINES)]
        styles[rule] = {"color": _SPARE_COLOURS[place], "linestyle": line}
        spare += 1
    return styles


@contextmanager
def theme() -> Iterator[None]:
    """Set the look for the figures made inside the block; nothing outside it changes."""
    import matplotlib as mpl
    import seaborn as sns

    look: dict[Any, Any] = {
        **sns.axes_style("whitegrid"),
        **sns.plotting_context("notebook", font_scale=0.85),
        "axes.edgecolor": "0.6",
        "axes.linewidth": 0.9,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "figure.facecolor": "white",
        "grid.color": "0.92",
        "legend.fontsize": "small",
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "svg.hashsalt": _SALT,
        # A dollar sign in a name is a dollar sign, not a formula.
        "text.parse_math": False,
    }
    with mpl.rc_context(look):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure whose parts make room for each other.

    Args:
        width: Inches.
        height: Inches.

    Returns:
        The figure; it belongs to no window and no pyplot state, and shows itself in Jupyter.
    """
    from gafscope.plots.figure import ShownFigure

    return ShownFigure(figsize=(width, height), layout="constrained")


def count_axis(axis: Axis) -> None:
    """Let an axis that counts (steps, updates) have whole numbers only.

    Args:
        axis: The x or y axis of a plot.
    """
    from matplotlib.ticker import MaxNLocator

    steps = [1, 2, 2.5, 5, 10]
    axis.set_major_locator(MaxNLocator("auto", steps=steps, integer=True, min_n_ticks=1))


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers (0.5, 1, 2) that suit the span it shows.

    Args:
        axes: The plot, with everything drawn.
        which: Its axis.
    """
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    steps = next((steps for span, steps in _LOG_STEPS.items() if high / low < span), (1,))
    axis.set_major_locator(LogLocator(subs=steps, numticks=6))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def save_figure(figure: Figure, folder: str | os.PathLike[str], name: str) -> list[Path]:
    """Write a figure as PNG (150 dpi) and SVG and empty it.

    Equal figures give equal bytes: neither file carries a date.

    Args:
        figure: The figure; it is cleared, which frees its memory.
        folder: Where the files go; created where it is missing.
        name: File name without ending.

    Returns:
        The paths of the PNG and of the SVG.

    Raises:
        UserError: The system refused to write; earlier versions of the files are intact.
    """
    import matplotlib as mpl

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(Path(folder), error, "No figure was written.") from error
    paths = [Path(folder) / f"{name}.{ending}" for ending in ("png", "svg")]
    with mpl.rc_context({"svg.hashsalt": _SALT}):
        for path, metadata in zip(paths, ({}, {"Date": None}), strict=True):
            with atomic_write(path) as file:
                figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=metadata)
    figure.clear()
    return paths
