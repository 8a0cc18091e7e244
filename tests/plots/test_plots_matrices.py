from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gafscope.plots import plot_gramian, save_figure

ROWS = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])


def gramian(k: int, seed: int = 0, shared: float = 0.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(k, 50)) + shared * draw.normal(size=50)
    return rows @ rows.T


def test_the_heat_map_shows_cosine_distances_around_one() -> None:
    figure = plot_gramian(ROWS @ ROWS.T, None, "step 3")
    heat, bar = figure.axes
    (image,) = heat.images
    half = 1 - math.sqrt(0.5)
    expected = [[0, half, 2], [half, 0, 2 - half], [2, 2 - half, 0]]
    np.testing.assert_allclose(image.get_array(), expected, atol=1e-12)
    assert image.get_clim() == (0, 2)
    middle = np.array(image.cmap(image.norm(1.0))[:3])
    assert middle.min() > 0.95, "orthogonal is white"
    red, _, blue, _ = image.cmap(image.norm(2.0))
    assert red > blue
    assert bar.get_ylabel() == "cosine distance (0 aligned, 1 orthogonal, 2 opposed)"
    assert heat.get_xlabel() == heat.get_ylabel() == "microbatch"
    assert figure.get_suptitle() == "step 3"
    assert [text.get_text() for text in heat.texts][:3] == ["0.00", "0.29", "2.00"]


@pytest.mark.parametrize(("k", "numbers"), [(1, 1), (12, 144), (13, 0), (64, 0)])
def test_numbers_are_written_up_to_twelve(k: int, numbers: int) -> None:
    heat = plot_gramian(gramian(k)).axes[0]
    assert len(heat.texts) == numbers
    assert len(heat.get_xticks()) <= 16


def test_tensors_are_taken() -> None:
    matrix = torch.from_numpy(gramian(3)).requires_grad_()
    heat = plot_gramian(matrix, {"fc": matrix}).axes[0]
    expected = plot_gramian(gramian(3)).axes[0].images[0].get_array()
    np.testing.assert_array_equal(heat.images[0].get_array(), expected)


def test_bars_are_mean_distances_in_the_models_order() -> None:
    layers = {"z": np.ones((2, 2)), "a": np.eye(2), "m": np.array([[1.0, -1.0], [-1.0, 1.0]])}
    bars = plot_gramian(np.eye(2), layers).axes[1]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([0, 1, 2])
    assert [label.get_text() for label in bars.get_yticklabels()] == ["z", "a", "m"]
    assert bars.yaxis_inverted()
    assert "mean cosine distance" in bars.get_xlabel()
    assert bars.get_xlim()[1] > 2


def test_of_many_layers_those_that_disagree_most_are_shown() -> None:
    distances = {f"layer{i}": (i * 7 % 40) / 40 for i in range(40)}
    layers = {name: np.array([[1, 1 - d], [1 - d, 1]]) for name, d in distances.items()}
    bars = plot_gramian(np.eye(2), layers).axes[1]
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names == [name for name, distance in distances.items() if distance >= 10 / 40]
    assert len(names) == len(bars.patches) == 30
    assert "30 of 40 layers that disagree most" in bars.get_title(loc="left")


def test_a_long_name_keeps_its_end() -> None:
    name = "transformer.encoder.blocks.11.attention.projection.weight"
    bars = plot_gramian(np.eye(2), {name: np.eye(2)}).axes[1]
    (label,) = (label.get_text() for label in bars.get_yticklabels())
    assert len(label) == 34
    assert label.startswith("…")
    assert name.endswith(label[1:])


def test_rows_that_are_not_finite_are_grey(tmp_path: Path) -> None:
    matrix = gramian(3)
    matrix[1] = matrix[:, 1] = np.nan
    figure = plot_gramian(matrix, {"bad": np.full((3, 3), np.nan), "good": gramian(3)})
    heat, bars = figure.axes[:2]
    assert heat.texts[1].get_text() == "-"
    assert heat.images[0].cmap.get_bad().tolist() == [0.75, 0.75, 0.75, 1.0]
    assert len(bars.patches) == 2
    save_figure(figure, tmp_path, "bad")


def test_without_two_gradients_there_are_no_bars(tmp_path: Path) -> None:
    figure = plot_gramian(gramian(1), {"fc": gramian(1)})
    assert len(figure.axes) == 2  # heat map and its colour bar
    save_figure(figure, tmp_path, "one")
