from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gafscope.records.acceptance import accepted_fraction, every_step_recorded


def test_k_is_the_number_of_distances_or_else_that_of_the_settings() -> None:
    table = pd.DataFrame(
        {"accepted": [2, 0, 3, np.nan], "distance_to_sum": [[np.nan, 1.0], [1.0] * 5, None, [1.0]]}
    )
    np.testing.assert_array_equal(
        accepted_fraction(table, {"microbatches": 4}), [1, 0, 0.75, np.nan]
    )
    np.testing.assert_array_equal(accepted_fraction(table, {}), [1, 0, np.nan, np.nan])


@pytest.mark.parametrize("columns", [[], ["step"], ["accepted"]])
def test_unknown_where_nothing_was_recorded(columns: list) -> None:
    table = pd.DataFrame({name: [1, 2] for name in columns})
    assert accepted_fraction(table, {}).isna().all()


@pytest.mark.parametrize(
    ("steps", "every"), [([0, 1, 2], True), ([0], True), ([0, 10, 20], False), ([5], False)]
)
def test_updates_can_be_counted_where_every_step_was_recorded(steps, every):
    assert every_step_recorded(pd.DataFrame({"step": steps})) is every


def test_an_empty_record_counts_nothing():
    assert not every_step_recorded(pd.DataFrame())
