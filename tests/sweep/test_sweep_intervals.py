import math

import numpy as np
import pandas as pd
import pytest

from gafscope.sweep.intervals import mean_interval, over_seeds, paired_difference


def test_interval_is_students():
    interval = mean_interval([1.0, 2.0, 3.0, 4.0])
    # t(0.975, 3) = 3.182446, s = 1.290994
    margin = 3.182446 * 1.290994 / 2
    assert interval.mean == 2.5
    assert interval.low == pytest.approx(2.5 - margin, abs=1e-5)
    assert interval.high == pytest.approx(2.5 + margin, abs=1e-5)


def test_interval_covers_the_mean_95_percent_of_the_time():
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(2000, 3))
    hits = [interval.low <= 0 <= interval.high for interval in map(mean_interval, samples)]
    assert 0.935 <= np.mean(hits) <= 0.965


def test_single_value_has_no_interval():
    interval = mean_interval([0.5])
    assert math.isnan(interval.low)
    assert not interval.excludes_zero
    assert interval.percent() == "50.0"


def ends() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "rule": ["a", "a", "b", "b"],
            "seed": [0, 1, 0, 1],
            "score": [0.5, 0.7, 0.4, 0.6],
        }
    )


def test_over_seeds_keeps_the_order_and_counts():
    table = over_seeds(ends(), ["rule"], ["score"])
    assert table["rule"].tolist() == ["a", "b"]
    assert table["seeds"].tolist() == [2, 2]
    assert table["score"].tolist() == pytest.approx([0.6, 0.5])


def test_paired_difference_pairs_by_seed():
    difference = paired_difference(ends().iloc[[1, 0, 2, 3]], "score", "a", "b")
    assert difference.mean == pytest.approx(0.1)
    # The pairs differ by the same amount, so the interval has no width.
    assert difference.low == pytest.approx(0.1)
    assert difference.excludes_zero
