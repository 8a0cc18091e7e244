from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from gafscope.plots import plot_run, save_figure
from gafscope.plots.style import BLUE, GREEN, ORANGE, RED


def scalars(steps: int) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    step = np.arange(steps)
    accepted = draw.integers(0, 3, steps)
    table = pd.DataFrame(
        {
            "step": step,
            "loss": 4 * np.exp(-step / 100) + draw.normal(0, 0.1, steps),
            "accuracy": draw.uniform(size=steps),
            "accepted": accepted,
            "stepped": accepted > 0,
            "distance_mean": draw.normal(1, 0.05, steps),
            "validation_loss": np.where(step % 50 == 0, 2.0, np.nan),
            "validation_accuracy": np.where(step % 50 == 0, 0.5, np.nan),
        }
    )
    table["distance_to_sum"] = [[np.nan, 1.0]] * steps
    return table


def line(axes: Axes, label: str):
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return found


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_four_panels_and_what_is_in_them() -> None:
    table = scalars(500)
    loss, accuracy, distance, acceptance, updates = plot_run(table, {"tau": 0.97}).axes
    assert [axes.get_title(loc="left") for axes in (loss, accuracy, distance, acceptance)] == [
        "loss",
        "accuracy",
        "disagreement",
        "acceptance",
    ]
    assert [axes.get_ylabel() for axes in (loss, accuracy, distance, acceptance, updates)] == [
        "loss",
        "accuracy (%)",
        "cosine distance (1: orthogonal)",
        "accepted microbatches (%)",
        "updates made",
    ]
    assert distance.get_xlabel() == acceptance.get_xlabel() == "step"
    assert labels(loss) == labels(accuracy) == ["train", "validation"]
    assert labels(distance) == ["mean over pairs", "tau = 0.97"]
    assert labels(acceptance) == ["accepted", "updates (right)"]
    colours = [line(loss, "train"), line(loss, "validation"), line(distance, "mean over pairs")]
    assert [found.get_color() for found in colours] == [BLUE, ORANGE, GREEN]


def test_points_are_raw_and_lines_are_rolling_means() -> None:
    table = scalars(500)
    distance = plot_run(table, {"tau": 0.97}).axes[2]
    raw, mean, tau = distance.lines
    np.testing.assert_array_equal(raw.get_ydata(), table["distance_mean"])
    assert raw.get_linestyle() == "None"
    assert raw.get_alpha() < 0.5
    assert raw.get_rasterized()
    expected = table["distance_mean"][95:105].mean()
    assert mean.get_ydata()[100] == pytest.approx(expected)
    assert list(tau.get_ydata()) == [0.97, 0.97]
    assert tau.get_color() == RED


def test_validation_and_updates() -> None:
    table = scalars(500)
    loss, accuracy, _, acceptance, updates = plot_run(table, {}).axes
    assert line(loss, "validation").get_xdata().tolist() == list(range(0, 500, 50))
    assert line(accuracy, "validation").get_ydata().tolist() == [0.5] * 10
    np.testing.assert_array_equal(updates.lines[0].get_ydata(), table["stepped"].cumsum())
    assert line(acceptance, "accepted").get_ydata().mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("config", [{}, {"tau": None}, {"tau": "auto"}])
def test_no_line_without_a_tau(config: dict) -> None:
    assert labels(plot_run(scalars(100), config).axes[2]) == ["mean over pairs"]


def test_one_step_is_visible(tmp_path: Path) -> None:
    figure = plot_run(scalars(1), {"tau": 0.97})
    for axes, label in zip(figure.axes, ("train", "train", "mean over pairs"), strict=False):
        assert line(axes, label).get_marker() == "o"
    assert [tick for tick in figure.axes[2].get_xticks() if abs(tick) < 0.05] == [0]
    save_figure(figure, tmp_path, "one")


def test_what_was_not_recorded_says_so(tmp_path: Path) -> None:
    table = scalars(60).assign(accuracy=np.nan)
    table = table.drop(columns=["validation_loss", "validation_accuracy", "distance_mean"])
    figure = plot_run(table, {})
    empty = [[text.get_text() for text in axes.texts] for axes in figure.axes[:4]]
    assert empty == [[], ["not recorded"], ["not recorded"], []]
    assert labels(figure.axes[0]) == ["train"]
    save_figure(figure, tmp_path, "sparse")


@pytest.mark.parametrize("table", [pd.DataFrame(), scalars(0)])
def test_a_run_without_steps(tmp_path: Path, table: pd.DataFrame) -> None:
    figure = plot_run(table, {"tau": 0.97})
    assert [len(axes.texts) for axes in figure.axes] == [1, 1, 0, 1]
    save_figure(figure, tmp_path, "none")


def test_infinite_losses_are_left_out(tmp_path: Path) -> None:
    table = scalars(100)
    table.loc[50:, "loss"] = np.inf
    figure = plot_run(table, {})
    assert line(figure.axes[0], "train").get_xdata().max() == 49
    save_figure(figure, tmp_path, "diverged")


def test_equal_runs_give_equal_svg(tmp_path: Path) -> None:
    paths = [save_figure(plot_run(scalars(80), {}), tmp_path / name, "run")[1] for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
