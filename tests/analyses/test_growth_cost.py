"""Growth with n, k and P, and the slopes of its lines."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gafscope.analyses.growth_cost import (
    GrowthCostSettings,
    growth_slopes,
    measure_growth_cost,
)
from gafscope.errors import UserError


def test_three_series():
    settings = GrowthCostSettings(
        model="mlp",
        samples=(2, 4),
        fixed_samples=4,
        microbatches=(2, 4),
        widths=(0.25, 0.5),
        engines=("loop",),
        repeats=1,
    )
    table = measure_growth_cost(settings)
    assert (table["seconds"] > 0).all()
    loop = table[table["method"] == "loop"]
    assert loop["growth"].tolist() == ["n", "n", "k", "k", "P", "P"]
    assert loop["n"].tolist() == [2, 4, 4, 4, 4, 4]
    assert loop["k"].tolist() == [2, 4, 2, 4, 4, 4]
    small, large = loop["parameters"].tolist()[-2:]
    assert loop["size"].tolist() == [2, 4, 2, 4, small, large]
    assert small < large
    assert table[table["method"] == "plain"]["size"].tolist() == loop["size"].tolist()


def power_law(growth: str, method: str, power: float, sizes: tuple[int, ...]) -> pd.DataFrame:
    seconds = 3e-3 * np.asarray(sizes, dtype=float) ** power
    return pd.DataFrame(
        {"growth": growth, "method": method, "size": sizes, "seconds": seconds, "note": ""}
    )


def test_slope_of_a_power_law():
    parts = [
        power_law("n", "ghost", 2.0, (4, 8, 16, 32)),
        power_law("n", "loop", 1.0, (4, 8, 16, 32)),
        power_law("P", "loop", 0.5, (10**4, 10**5, 10**6)),
        power_law("k", "loop", 1.0, (2, 4)),  # two points make no slope
    ]
    slopes = growth_slopes(pd.concat(parts))
    found = {(row.growth, row.method): row.slope for row in slopes.itertuples()}
    expected = {("n", "ghost"): 2.0, ("n", "loop"): 1.0, ("P", "loop"): 0.5}
    assert found == pytest.approx(expected)
    assert slopes["sizes"].tolist() == [4, 4, 3]
    assert slopes["slope_low"].to_numpy() == pytest.approx(slopes["slope"].to_numpy())


def test_interval_of_a_noisy_line_holds_its_slope():
    table = power_law("n", "loop", 1.0, (4, 8, 16, 32, 64))
    table["seconds"] *= [1.1, 0.9, 1.05, 0.95, 1.02]
    (row,) = growth_slopes(table).to_dict("records")
    assert row["slope_low"] < 1 < row["slope_high"]
    assert row["slope_high"] - row["slope_low"] == pytest.approx(0.21, abs=0.1)


def test_sizes_that_were_not_timed_are_passed_over():
    table = power_law("n", "loop", 1.0, (4, 8, 16, 32))
    table.loc[3, "seconds"] = np.nan
    assert growth_slopes(table)["sizes"].tolist() == [3]
    table["seconds"] = np.nan
    assert len(growth_slopes(table)) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "rensnet18"}, ["rensnet18", "'resnet18'"]),
        ({"microbatches": (3,)}, ["3 does not divide 64"]),
        ({"samples": (1,)}, ["at least 2", "(1,)"]),
        ({"widths": (0.0,)}, ["positive widths"]),
        ({"engines": ("vmpa",)}, ["vmpa", "'vmap'"]),
        ({"repeats": 0}, ["repeats", "0"]),
    ],
)
def test_mistakes_are_explained(change, words):
    with pytest.raises(UserError) as caught:
        measure_growth_cost(GrowthCostSettings(**change))
    for word in words:
        assert word in str(caught.value)
