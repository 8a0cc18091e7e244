"""Agreement over the recorded steps: layer by layer, and matrices of a few steps side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gafscope.plots.matrices import short_name
from gafscope.plots.style import new_figure, theme

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float64
    from matplotlib.figure import Figure

_COLOURS = "RdBu_r"
_NOT_FINITE = "0.6"
_LONGEST_NAME = 22
_MOST_TICKS = 6
_COLUMNS = 3


def distance_colours(count: int) -> list[str]:
    """Give the colours of cosine distances from 0 (aligned) to 2 (opposed).

    Args:
        count: How many, evenly spread.

    Returns:
        Hex colours; the middle one, orthogonal, is near white.
    """
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in mpl.colormaps[_COLOURS](np.linspace(0, 1, count))]


def plot_layer_steps(distances: pd.DataFrame) -> Figure:
    """Draw the mean distance of each layer at each recorded step.

    Args:
        distances: One row a layer, one column a step; NaN where a layer was not recorded or no
            two of its gradients were finite.

    Returns:
        A heat map, layers downwards and steps to the right, its colours centred at 1.
    """
    import matplotlib as mpl
    import seaborn as sns

    with theme():
        figure = new_figure(4.4, 1.5 + 0.2 * len(distances))
        axes = figure.subplots()
        axes.set_facecolor(_NOT_FINITE)
        sns.heatmap(
            distances,
            ax=axes,
            cmap=mpl.colormaps[_COLOURS],
            vmin=0,
            vmax=2,
            # As a picture: a path a cell would make a page of megabytes.
            rasterized=True,
            cbar_kws={"location": "top", "aspect": 30, "ticks": [0, 0.5, 1, 1.5, 2]},
        )
        figure.axes[-1].set_xlabel("mean cosine distance (1: orthogonal)")
        ticks = np.unique(np.linspace(0, len(distances.columns) - 1, _MOST_TICKS).round())
        steps = [str(distances.columns[int(tick)]) for tick in ticks]
        axes.set_xticks(ticks + 0.5, steps, rotation=0)
        names = [short_name(str(name), _LONGEST_NAME) for name in distances.index]
        axes.set_yticks(np.arange(len(names)) + 0.5, names, rotation=0, fontsize=8)
        axes.set(xlabel="step", ylabel="")
    return figure


def plot_snapshots(distances: Mapping[int, Float64[np.ndarray, "k k"]]) -> Figure:
    """Draw the matrices of a few steps side by side.

    Args:
        distances: Step -> cosine distances, (k, k); k may differ from step to step.

    Returns:
        One small heat map a step, three in a row, with one colour scale.
    """
    import matplotlib as mpl

    rows = -(-len(distances) // _COLUMNS)
    colours = mpl.colormaps[_COLOURS].with_extremes(bad=_NOT_FINITE)
    with theme():
        figure = new_figure(5.4, 0.9 + 1.95 * rows)
        figure.set_layout_engine("compressed")
        grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        image = None
        for axes, (step, matrix) in zip(grid, distances.items(), strict=False):
            image = axes.imshow(matrix, cmap=colours, vmin=0, vmax=2, interpolation="nearest")
            axes.set_title(f"step {step}", fontsize=9)
            axes.set(xticks=[], yticks=[])
        for axes in grid[len(distances) :]:
            axes.set_visible(False)
        assert image is not None, "no matrix to draw"
        figure.colorbar(
            image,
            ax=list(grid),
            location="bottom",
            aspect=40,
            ticks=[0, 0.5, 1, 1.5, 2],
            label="cosine distance (0 aligned, 1 orthogonal, 2 opposed)",
        )
    return figure
