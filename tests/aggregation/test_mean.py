from __future__ import annotations

import explicit_rules
import numpy as np
import pytest
from random_rows import cases, flat, gradient_rows, gramian

from gafscope.aggregation import Mean


def test_it_averages_the_finite_rows():
    for rows, _, kind in cases(300):
        decision = Mean()(gramian(rows))
        finite = np.isfinite(rows).all(1)
        assert decision.finite.tolist() == decision.accepted.tolist() == finite.tolist(), kind
        assert decision.step == finite.any()
        weights = finite / max(finite.sum(), 1)
        np.testing.assert_allclose(decision.weights, weights, rtol=1e-15)
        update = flat(gradient_rows(rows).combine(decision.weights))
        scale = np.abs(rows[finite]).max(initial=1e-30)
        np.testing.assert_allclose(
            update, explicit_rules.mean(rows), rtol=1e-12, atol=1e-13 * scale
        )


def test_it_records_the_distances_that_gaf_sees():
    for rows, _, _ in cases(100):
        expected = explicit_rules.gaf(rows, 2.0).distances
        found = Mean()(gramian(rows)).distances
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("row", [[1.0, 2.0], [0.0, 0.0]])
def test_a_single_micro_gradient_is_plain_training(row):
    decision = Mean()(gramian(np.array([row])))
    assert decision.step
    assert decision.weights.tolist() == [1.0]


def test_no_finite_row_no_step():
    decision = Mean()(gramian(np.full((3, 2), np.nan)))
    assert not decision.step
    assert decision.weights.tolist() == [0, 0, 0]
    assert decision.distances.isnan().all()
