from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gafscope.plots import save_figure
from gafscope.plots.diagnosis import plot_curve, plot_layers, plot_scores, plot_spectrum


def layers(count: int) -> pd.DataFrame:
    distance = np.linspace(1.1, 0.4, count)
    return pd.DataFrame(
        {
            "layer": [f"block.{i}.weight" for i in range(count)],
            "distance": distance,
            "distance_low": distance - 0.1,
            "distance_high": distance + 0.1,
            "share": 1 / count,
        }
    )


def test_layers_stand_in_their_order_the_worst_on_top() -> None:
    axes = plot_layers(layers(4)).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"block.{i}.weight" for i in range(4)]
    assert axes.yaxis_inverted()
    np.testing.assert_allclose(axes.lines[1].get_xdata(), layers(4)["distance"])
    (lines,) = axes.collections
    np.testing.assert_allclose(lines.get_segments()[0][:, 0], [1.0, 1.2])


def test_only_the_worst_of_many_layers_are_drawn() -> None:
    axes = plot_layers(layers(50)).axes[0]
    assert len(axes.get_yticks()) == 30
    assert "30 of 50" in axes.get_title(loc="left")


def curve(known: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    u = np.array([5, 10, 20])
    cosine = 1 / (1 + 40 / u)
    measured = pd.DataFrame(
        {"u": u, "cosine": cosine, "cosine_low": cosine - 0.02, "cosine_high": cosine + 0.03}
    )
    shown = cosine if known else np.full(3, math.nan)
    predicted = pd.DataFrame({"u": u, "cosine": shown, "low": shown - 0.1, "high": shown + 0.1})
    return measured, predicted


def test_the_curve_shows_prediction_and_measurement_as_distances() -> None:
    axes = plot_curve(*curve(known=True), 10).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["predicted from u = 10", "measured"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1 - curve(True)[0]["cosine"])
    points = axes.containers[0]
    np.testing.assert_allclose(points[0].get_ydata(), 1 - curve(True)[0]["cosine"])
    low, high = points[2][0].get_segments()[0][:, 1]
    # The upper end of the cosine is the lower end of the distance.
    assert low == pytest.approx(1 - (1 / 9 + 0.03))
    assert high == pytest.approx(1 - (1 / 9 - 0.02))


def test_a_refused_curve_says_so() -> None:
    axes = plot_curve(*curve(known=False), 10).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["measured"]
    assert "no prediction" in axes.get_title(loc="left")


def scores(flipped: bool) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"class_distance": draw.normal(size=60), "loss": draw.random(60)})
    return table.assign(flipped=[True] * 15 + [False] * 45) if flipped else table


def test_flipped_and_clean_samples_are_drawn_apart() -> None:
    left, right = plot_scores(scores(flipped=True), "class_distance").axes
    assert left.get_legend_handles_labels()[1] == ["label right (45)", "label flipped (15)"]
    assert sum(bar.get_height() for bar in left.containers[1]) == 15
    assert [len(line.get_xdata()) for line in right.lines] == [45, 15]


def test_samples_without_true_labels_are_drawn_together() -> None:
    table = scores(flipped=False)
    table.loc[3, "class_distance"] = math.nan
    left, _ = plot_scores(table, "class_distance").axes
    assert left.get_legend_handles_labels()[1] == ["samples (59)"]


def test_what_stands_out_of_the_spectrum_is_told_apart() -> None:
    axes = plot_spectrum([9.0, 5.0, 1.0, 0.9, 0.8], 2.0).axes[0]
    assert axes.get_legend_handles_labels()[1][1] == "stands out (2)"
    assert axes.lines[0].get_xdata().tolist() == [3, 4, 5]
    assert axes.lines[2].get_ydata()[0] == 2.0
    assert axes.get_yscale() == "log"
    assert plot_spectrum([1.0, 0.0], 2.0).axes[0].get_yscale() == "linear"


def test_figures_can_be_saved(tmp_path: Path) -> None:
    for figure in (plot_layers(layers(1)), plot_scores(scores(True), "class_distance")):
        assert all(path.stat().st_size > 0 for path in save_figure(figure, tmp_path, "figure"))
