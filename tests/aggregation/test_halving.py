from __future__ import annotations

import math

import explicit_rules
import numpy as np
import pytest
from random_rows import cases, flat, gradient_rows, gramian

from gafscope.aggregation import GAF, HalvingGAF
from gafscope.errors import UserError


def test_decisions_and_updates_equal_the_released_rule_on_explicit_vectors():
    for rows, tau, kind in cases(900):
        expected = explicit_rules.halving(rows, tau)
        decision = HalvingGAF(tau)(gramian(rows))
        assert decision.accepted.nonzero().flatten().tolist() == expected.accepted, (kind, tau)
        assert decision.step == expected.step
        np.testing.assert_allclose(decision.distances, expected.distances, rtol=0, atol=1e-9)
        update = flat(gradient_rows(rows).combine(decision.weights))
        scale = np.abs(rows[expected.accepted]).max(initial=1e-30)
        np.testing.assert_allclose(update, expected.update, rtol=1e-12, atol=1e-13 * scale)


@pytest.mark.parametrize("k", [2, 3, 4, 9])
def test_later_rows_weigh_more(k):
    decision = HalvingGAF(2.0)(gramian(np.ones((k, 3))))
    expected = [0.5 ** (k - 1), *(0.5 ** (k - i) for i in range(1, k))]
    assert decision.weights.tolist() == expected
    assert sum(expected) == 1


def test_a_rejected_row_does_not_halve_the_others():
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert HalvingGAF(0.5)(gramian(rows)).weights.tolist() == [0.5, 0.0, 0.5]


def test_it_differs_from_gaf_where_the_running_vectors_differ():
    # The average that halves has turned further towards the third row than the sum has.
    rows = np.array([[1.0, 0.0, 0.0], [0.9, 0.2, 0.0], [0.0, 1.0, 0.0], [-0.75, 1.0, 0.0]])
    assert GAF(1.0)(gramian(rows)).accepted.tolist() == [True, True, True, False]
    assert HalvingGAF(1.0)(gramian(rows)).accepted.tolist() == [True, True, True, True]


@pytest.mark.parametrize("tau", [-0.1, 2.1, math.nan])
def test_a_threshold_that_no_distance_can_have_is_refused(tau):
    with pytest.raises(UserError, match=r"\[0, 2\]"):
        HalvingGAF(tau)


def test_a_single_micro_gradient_cannot_be_compared():
    with pytest.raises(UserError, match="HalvingGAF needs at least 2"):
        HalvingGAF()(gramian(np.ones((1, 3))))
