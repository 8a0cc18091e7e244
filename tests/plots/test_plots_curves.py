from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from gafscope.errors import UserError
from gafscope.plots import RULE_COLOURS, RULE_LINES, plot_comparison, save_figure


def table(*rules: str, seeds: int = 3, steps: int = 4) -> pd.DataFrame:
    rows = [
        {"rule": rule, "seed": seed, "step": 10 * step, "accuracy": place + seed + step / 10}
        for place, rule in enumerate(rules)
        for seed in range(seeds)
        for step in range(steps)
    ]
    return pd.DataFrame(rows)


def test_mean_and_range_over_the_seeds() -> None:
    axes = plot_comparison(table("averaging", "GAF"), "accuracy", "accuracy (of 1)", "digits").axes
    (axis,) = axes
    averaging, gaf = axis.lines
    assert averaging.get_xdata().tolist() == [0, 10, 20, 30]
    assert averaging.get_ydata() == pytest.approx([1.0, 1.1, 1.2, 1.3])
    assert gaf.get_ydata() == pytest.approx([2.0, 2.1, 2.2, 2.3])
    low, high = axis.collections[0].get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == pytest.approx((0, 2.3))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "accuracy (of 1)")
    assert axis.get_title(loc="left") == "digits"
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert texts == ["averaging (3 seeds)", "GAF (3 seeds)"]


def test_rules_keep_their_colours_and_lines() -> None:
    axis = plot_comparison(table(*reversed(RULE_COLOURS), "soft"), "accuracy", "", "").axes[0]
    for line, band in zip(axis.lines, axis.collections, strict=True):
        rule = line.get_label().split(" (")[0]
        assert to_hex(band.get_facecolor()[0]) == line.get_color()
        if rule != "soft":
            assert line.get_color() == RULE_COLOURS[rule]
            assert line.get_linestyle() == RULE_LINES[rule]
    assert line.get_color() not in RULE_COLOURS.values()


def test_one_seed_has_no_band() -> None:
    axis = plot_comparison(table("GAF", seeds=1), "accuracy", "accuracy", "").axes[0]
    assert len(axis.collections) == 0
    assert axis.get_legend().get_texts()[0].get_text() == "GAF"
    assert axis.get_legend().get_title().get_text() == ""


def test_one_step_is_visible() -> None:
    axis = plot_comparison(table("GAF", steps=1), "accuracy", "accuracy", "").axes[0]
    assert axis.lines[0].get_marker() == "o"


def test_missing_values_are_passed_over(tmp_path: Path) -> None:
    rows = table("averaging", "GAF")
    rows.loc[rows["rule"] == "GAF", "accuracy"] = np.nan
    rows.loc[0, "accuracy"] = np.nan
    axis = plot_comparison(rows, "accuracy", "accuracy", "").axes[0]
    assert [line.get_label() for line in axis.lines] == ["averaging (3 seeds)"]
    assert axis.lines[0].get_ydata()[0] == pytest.approx(1.5)
    nothing = plot_comparison(rows.iloc[:0], "accuracy", "accuracy", "")
    assert len(nothing.axes[0].lines) == 0
    save_figure(nothing, tmp_path, "nothing")


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(UserError, match=r"Unknown column 'acuracy'\. Did you mean 'accuracy'"):
        plot_comparison(table("GAF"), "acuracy", "accuracy", "")
