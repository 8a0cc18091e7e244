"""A watched loop at a glance: the picture that the live view keeps drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gafscope.plots.matrices import short_name
from gafscope.plots.runs import PANELS
from gafscope.plots.style import count_axis, new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float64
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_SIZE = (11, 6.2)
_CURVES = ("loss", "distance", "acceptance")
_COLOURS = "RdBu_r"
_NOT_FINITE = "0.6"
_LONGEST_NAME = 26
_MOST_NAMES = 14
_MOST_TICKS = 6
_LARGEST_WITH_NUMBERS = 8
_FULL_BLOCK = 12


def plot_panel(
    scalars: pd.DataFrame,
    config: Mapping[str, Any],
    last: tuple[int, Float64[np.ndarray, "k k"]] | None,
    layers: pd.DataFrame,
) -> Figure:
    """Draw the curves of a loop, the distances at its last step, and those of its layers.

    Args:
        scalars: `Run.scalars`; what is missing or all NaN leaves its place empty.
        config: `Run.config`; see `plot_run`.
        last: The last recorded step and its cosine distances, (k, k); None before there is one.
        layers: Mean distance, one row a layer and one column a recorded step; it may be empty.

    Returns:
        Loss, distance and acceptance above; the matrix and the heat map, on one scale, below.
    """
    # Between recorded steps there may be others, so that these cannot tell how many updates.
    scalars = scalars.drop(columns="stepped", errors="ignore")
    with theme():
        figure = new_figure(*_SIZE)
        # A layout that is solved anew for every picture takes as long as the drawing itself.
        figure.set_layout_engine("none")
        above = figure.add_gridspec(
            1, 3, left=0.06, right=0.975, bottom=0.62, top=0.95, wspace=0.31
        )
        for place, name in enumerate(_CURVES):
            axes = figure.add_subplot(above[place])
            PANELS[name](axes, scalars, config)
            axes.set(title="", xlabel="step")
            axes.yaxis.label.set_fontsize(8.5)
            count_axis(axes.xaxis)
        images = [
            _draw_matrix(figure.add_axes((0.06, 0.09, 0.235, 0.4)), last),
            _draw_layers(figure.add_axes((0.47, 0.09, 0.44, 0.4)), layers),
        ]
        drawn = [image for image in images if image is not None]
        if drawn:
            scale = figure.add_axes((0.925, 0.09, 0.012, 0.4))
            figure.colorbar(drawn[0], cax=scale, ticks=[0, 0.5, 1, 1.5, 2])
            scale.set_title("distance", fontsize=8, loc="center")
    return figure


def _draw_matrix(
    axes: Axes, last: tuple[int, Float64[np.ndarray, "k k"]] | None
) -> AxesImage | None:
    if last is None:
        axes.set_title("microbatches")
        return _draw_nothing(axes)
    step, distances = last
    axes.grid(visible=False)
    image = _draw_image(axes, distances, aspect="equal")
    axes.set(title=f"microbatches, step {step:,}", xlabel="microbatch", ylabel="microbatch")
    k = len(distances)
    ticks = np.arange(0, k, max(1, -(-k // _MOST_TICKS)))
    axes.set(xticks=ticks, yticks=ticks)
    if k <= _LARGEST_WITH_NUMBERS:
        for (i, j), value in np.ndenumerate(distances):
            text = "-" if np.isnan(value) else f"{value:.2f}"
            colour = "white" if abs(value - 1) > 0.6 else "black"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    return image


def _draw_layers(axes: Axes, layers: pd.DataFrame) -> AxesImage | None:
    axes.set_title("layers: mean distance over pairs")
    if layers.empty:
        return _draw_nothing(axes)
    axes.grid(visible=False)
    image = _draw_image(axes, layers.to_numpy(dtype=np.float64), aspect="auto")
    rows, columns = layers.shape
    places = np.arange(0, rows, max(1, -(-rows // _MOST_NAMES)))
    names = [short_name(str(name), _LONGEST_NAME) for name in layers.index[places]]
    axes.set_yticks(places, names, fontsize=8)
    places = np.unique(np.linspace(0, columns - 1, _MOST_TICKS).round().astype(int))
    axes.set_xticks(places, [f"{step:,}" for step in layers.columns[places]])
    axes.set_xlabel("step")
    # A run that has just begun is a few columns, not two bars as wide as the panel.
    axes.set_xlim(-0.5, max(columns, _FULL_BLOCK) - 0.5)
    return image


def _draw_image(
    axes: Axes, values: Float64[np.ndarray, "n m"], aspect: Literal["equal", "auto"]
) -> AxesImage:
    import matplotlib as mpl

    colours = mpl.colormaps[_COLOURS].with_extremes(bad=_NOT_FINITE)
    return axes.imshow(values, cmap=colours, vmin=0, vmax=2, aspect=aspect)


def _draw_nothing(axes: Axes) -> None:
    place = axes.transAxes
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "not recorded", transform=place, ha="center", va="center", color="0.5")
