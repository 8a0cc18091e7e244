from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gafscope.plots.panels import line_styles, plot_column, plot_run_panels, plot_runs_panels
from gafscope.plots.runs import plot_run


def scalars(steps: int = 200) -> pd.DataFrame:
    step = np.arange(steps)
    return pd.DataFrame(
        {
            "step": step,
            "loss": np.exp(-step / 50),
            "accuracy": step / steps,
            "distance_mean": 0.9 + 0.1 * np.sin(step),
            "accepted": step % 3,
            "stepped": step % 3 > 0,
            "validation_accuracy": np.where(step % 20 == 0, 0.5, np.nan),
        }
    )


def lines(axes) -> list[list[float]]:
    return [np.asarray(line.get_ydata(), float).tolist() for line in axes.lines]


def test_panels_are_those_of_the_run_figure() -> None:
    config = {"tau": 0.97, "microbatches": 2}
    panels = plot_run_panels(scalars(), config)
    whole = plot_run(scalars(), config).axes
    assert list(panels) == ["loss", "accuracy", "distance", "acceptance"]
    for figure, axes in zip(panels.values(), whole, strict=False):
        own = figure.axes[0]
        assert lines(own) == lines(axes)
        assert own.get_ylabel() == axes.get_ylabel()
        assert (own.get_title(loc="left"), own.get_xlabel()) == ("", "step")


def test_panels_without_data_are_left_out() -> None:
    table = scalars().drop(columns=["distance_mean"]).assign(accuracy=np.nan)
    table = table.drop(columns="validation_accuracy")
    assert list(plot_run_panels(table, {"tau": 0.97})) == ["loss", "acceptance"]


def test_any_column_can_be_drawn() -> None:
    raw, mean = plot_column(scalars(), "loss").axes[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), scalars()["loss"])
    expected = scalars()["loss"].rolling(4, min_periods=1, center=True).mean()
    np.testing.assert_allclose(mean.get_ydata(), expected)


def test_a_comparison_has_a_line_a_run_in_its_style() -> None:
    runs = {"a": (scalars(), {"microbatches": 2}), "b$": (scalars(40), {"microbatches": 4})}
    figures = plot_runs_panels(runs)
    assert "validation_loss" not in figures
    for figure in figures.values():
        first, second = figure.axes[0].lines
        for line, look in zip((first, second), line_styles(runs).values(), strict=True):
            assert line.get_color() == look["color"]
            assert line.get_linestyle() == look["linestyle"]
        assert first.get_xdata().max() > second.get_xdata().max()
    updates = figures["updates"].axes[0].lines[0]
    np.testing.assert_array_equal(updates.get_ydata(), scalars()["stepped"].cumsum())
    accepted = figures["accepted"].axes[0].lines
    # 0, 1, 2 of 2 and of 4 in turn.
    assert np.mean(accepted[0].get_ydata()) == pytest.approx(0.5, abs=0.01)
    assert np.mean(accepted[1].get_ydata()) == pytest.approx(0.25, abs=0.02)
    validation = figures["validation_accuracy"].axes[0].lines[0]
    assert validation.get_xdata().tolist() == list(range(0, 200, 20))


def test_a_run_without_a_quantity_has_an_empty_line() -> None:
    runs = {"a": (scalars(), {}), "b": (scalars().drop(columns="loss"), {})}
    first, second = plot_runs_panels(runs)["loss"].axes[0].lines
    assert len(first.get_xdata()) == 200
    assert len(second.get_xdata()) == 0


def test_styles_tell_runs_apart() -> None:
    looks = [tuple(look.values()) for look in line_styles(str(n) for n in range(32)).values()]
    assert len(set(looks)) == 32
    assert len({line for _, line in looks[:4]}) == 4
