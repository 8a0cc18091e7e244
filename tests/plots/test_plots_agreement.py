from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gafscope.plots.agreement import distance_colours, plot_layer_steps, plot_snapshots


def test_colours_run_from_blue_over_white_to_red() -> None:
    colours = distance_colours(101)
    assert len(colours) == 101
    rgb = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (colours[0], colours[-1])]
    assert rgb[0][2] > rgb[0][0]
    assert rgb[1][0] > rgb[1][2]
    assert min(int(colours[50][i : i + 2], 16) for i in (1, 3, 5)) > 230


def test_layers_go_down_and_steps_to_the_right() -> None:
    table = pd.DataFrame([[0.5, 1.0, 1.5], [2.0, np.nan, 0.0]], ["first", "x" * 40], [0, 7, 100])
    axes, _ = plot_layer_steps(table).axes
    mesh = axes.collections[0]
    np.testing.assert_array_equal(mesh.get_array().filled(np.nan).reshape(2, 3), table.to_numpy())
    assert mesh.get_clim() == (0, 2)
    assert mesh.get_rasterized()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "7", "100"]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["first", "…" + "x" * 21]
    assert axes.yaxis_inverted()


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_snapshots_show_each_step(count: int) -> None:
    matrices = {10 * n: np.full((n + 2, n + 2), n / 3) for n in range(count)}
    figure = plot_snapshots(matrices)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in shown] == [f"step {step}" for step in matrices]
    for axes, matrix in zip(shown, matrices.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), matrix)
        assert axes.images[0].get_clim() == (0, 2)
    assert sum(axes.get_visible() for axes in figure.axes) == count + 1
