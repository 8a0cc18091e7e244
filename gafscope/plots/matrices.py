"""One step's agreement: who agrees with whom, and in which layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from gafscope.geometry import cosine_distance, mean_pairwise_distance
from gafscope.plots.style import BLUE, new_figure, theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

_LARGEST_WITH_NUMBERS = 12
_MOST_LAYERS = 30
_FEWEST_PLACES = 8
_LONGEST_NAME = 34
_SCALE = "cosine distance (0 aligned, 1 orthogonal, 2 opposed)"


def plot_gramian(
    matrix: ArrayLike, layers: Mapping[str, ArrayLike] | None = None, title: str | None = None
) -> Figure:
    """Draw the cosine distances between micro-gradients, and their mean layer by layer.

    Args:
        matrix: Gramian of the whole model, (k, k).
        layers: Gramians by layer, each (k, k). Of more than 30 layers those with the largest
            mean distance are drawn, in the model's order.
        title: Title of the figure.

    Returns:
        A heat map whose colours are centred at 1, with numbers in the cells up to k = 12;
        beside it one bar a layer where layers are given. A gradient that is not finite is grey.
    """
    distance = cosine_distance(_tensor(matrix)).numpy()
    means = {name: mean_pairwise_distance(_tensor(value)) for name, value in (layers or {}).items()}
    if np.isnan([*means.values()]).all():  # no layers, or no two finite gradients to compare
        means = {}
    height = max(4.6, 0.22 * min(len(means), _MOST_LAYERS) + 1.4)
    with theme():
        figure = new_figure(12 if means else 6, height)
        if means:
            left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
            _draw_bars(right, means)
        else:
            left = figure.subplots()
        _draw_heat_map(left, distance)
        if title:
            figure.suptitle(title)
    return figure


def _tensor(matrix: ArrayLike) -> torch.Tensor:
    if isinstance(matrix, torch.Tensor):
        return matrix.detach().cpu().double()
    return torch.from_numpy(np.array(matrix, dtype=np.float64))


def _draw_heat_map(axes: Axes, distance: np.ndarray) -> None:
    import matplotlib as mpl

    k = len(distance)
    colours = mpl.colormaps["RdBu_r"].with_extremes(bad="0.75")
    image = axes.imshow(distance, cmap=colours, vmin=0, vmax=2)
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=axes, label=_SCALE, ticks=[0, 0.5, 1, 1.5, 2], fraction=0.046)
    axes.grid(visible=False)
    axes.set(xlabel="microbatch", ylabel="microbatch", title="distance between micro-gradients")
    ticks = np.arange(0, k, max(1, -(-k // 16)))
    axes.set(xticks=ticks, yticks=ticks)
    if k > _LARGEST_WITH_NUMBERS:
        return
    for (i, j), value in np.ndenumerate(distance):
        dark = abs(value - 1) > 0.6
        axes.text(
            j,
            i,
            "-" if np.isnan(value) else f"{value:.2f}",
            ha="center",
            va="center",
            color="white" if dark else "black",
            fontsize=11 if k <= 4 else 9 if k <= 8 else 7,
        )


def _draw_bars(axes: Axes, means: Mapping[str, float]) -> None:
    largest = sorted(means, key=lambda name: np.nan_to_num(means[name], nan=-1.0))[-_MOST_LAYERS:]
    names = [name for name in means if name in set(largest)]
    places = np.arange(len(names))
    axes.barh(places, [means[name] for name in names], color=BLUE, height=0.7)
    axes.set_yticks(places, [short_name(name) for name in names], fontsize=8)
    axes.set_ylim(max(len(names), _FEWEST_PLACES) - 0.5, -0.5)
    axes.axvline(1, color="0.4", linewidth=1, linestyle="--")
    some = len(names) < len(means)
    axes.set(
        xlim=(0, max(1.1, 1.05 * np.nanmax([0.0, *means.values()]))),
        xlabel="mean cosine distance (dashed: orthogonal)",
        title=f"the {len(names)} of {len(means)} layers that disagree most" if some else "by layer",
    )
    axes.grid(visible=False, axis="y")


def short_name(name: str, longest: int = _LONGEST_NAME) -> str:
    """Shorten a parameter's name to its end, which says most: blocks.11.mlp.weight.

    Args:
        name: The name.
        longest: How many characters there is room for.

    Returns:
        The name, or an ellipsis and its end.
    """
    return name if len(name) <= longest else f"…{name[1 - longest :]}"
