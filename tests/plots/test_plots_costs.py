from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gafscope.plots import save_figure
from gafscope.plots.costs import plot_engine_cost, plot_growth_cost

METHODS = {"plain": "plain", "ghost": "plain", "opacus": "plain"}
STEPS = {"averaging step": "averaging step", "GAF step": "averaging step"}


def cell(model: str, k: int, u: int) -> list[dict[str, object]]:
    methods = METHODS | STEPS if u == 1 else {"plain": "plain", "ghost": "plain"}
    ratio = {method: 1.0 + place + k / 100 for place, method in enumerate(methods)}
    shape = {"model": model, "k": k, "u": u, "n": k * u}
    return [
        shape
        | {"method": method, "base": base, "ratio": ratio[method], "floor": 1 + k / 1000}
        | {"ratio_low": ratio[method] - 0.1, "ratio_high": ratio[method] + 0.2}
        | {"memory_ratio": 2 * ratio[method]}
        for method, base in methods.items()
    ]


def engines() -> pd.DataFrame:
    sizes = [(16, 1), (64, 1), (8, 2), (4, 32)]
    return pd.DataFrame([row for m in ("vit", "cnn") for size in sizes for row in cell(m, *size)])


def test_time_memory_and_step_of_each_model() -> None:
    figure = plot_engine_cost(engines())["engines"]
    assert len(figure.axes) == 3 * 2
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["vit", "cnn"]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["ghost", "opacus", "floor by FLOPs"]
    time, _, memory, _, step, _ = figure.axes
    lines = [container[0] for container in time.containers]
    assert lines[0].get_xdata().tolist() == [16, 64]
    assert lines[0].get_ydata() == pytest.approx([2.16, 2.64])
    assert time.lines[-2].get_ydata() == pytest.approx([1.016, 1.064])  # the floor
    assert memory.containers[1][0].get_ydata() == pytest.approx([6.32, 7.28])
    assert step.containers[0][0].get_ydata() == pytest.approx([5.16, 5.64])
    assert [label.get_text() for label in step.get_xticklabels()] == ["16", "64"]


def test_error_bars_are_the_quartiles() -> None:
    time = plot_engine_cost(engines())["engines"].axes[0]
    (bars,) = time.containers[0][2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx([2.06, 2.36]), pytest.approx([2.54, 2.84])]


def test_microbatches_stand_side_by_side() -> None:
    figure = plot_engine_cost(engines())["microbatches"]
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8 x 2", "4 x 32"]
    assert axes.containers[0][0].get_ydata() == pytest.approx([2.08, 2.04])
    assert axes.containers[0][0].get_linestyle() == "None"


def test_what_was_not_measured_is_passed_over(tmp_path: Path) -> None:
    table = engines()
    table.loc[table["method"].isin(["opacus", "GAF step"]), ["ratio", "memory_ratio"]] = np.nan
    figure = plot_engine_cost(table[table["u"] == 1])["engines"]
    assert len(figure.axes) == 2 * 2
    save_figure(figure, tmp_path, "engines")
    assert plot_engine_cost(table[table["method"] == "plain"]) == {}


def growth() -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [
        {"growth": name, "method": method, "size": size, "seconds": size * factor}
        | {"seconds_low": size * factor * 0.9, "seconds_high": size * factor * 1.2}
        for name, sizes in {"n": (4, 8, 16), "P": (9_000, 94_000, 1_500_000)}.items()
        for method, factor in {"plain": 1e-3, "ghost": 2e-3}.items()
        for size in sizes
    ]
    slopes = pd.DataFrame({"growth": ["n", "P"], "method": ["ghost", "ghost"], "slope": [1.0, 1.5]})
    return pd.DataFrame(rows), slopes


def test_a_panel_a_series_with_its_slopes(tmp_path: Path) -> None:
    figure = plot_growth_cost(*growth())["growth"]
    samples, parameters = figure.axes
    assert (samples.get_xlabel(), parameters.get_xlabel()) == ("n samples", "P parameters")
    assert (samples.get_xscale(), samples.get_yscale()) == ("log", "log")
    texts = [text.get_text() for text in samples.get_legend().get_texts()]
    assert texts == ["plain", "ghost: slope 1.00"]
    ticks = [label.get_text() for label in parameters.get_xticklabels()]
    assert ticks == ["9000", "94k", "1.5M"]
    save_figure(figure, tmp_path, "growth")


def test_nothing_measured_draws_nothing() -> None:
    table, slopes = growth()
    assert plot_growth_cost(table.assign(seconds=np.nan), slopes) == {}
