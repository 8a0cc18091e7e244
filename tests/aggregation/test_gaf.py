from __future__ import annotations

import math

import explicit_rules
import numpy as np
import pytest
import torch
from random_rows import ODD, cases, flat, gradient_rows, gramian

from gafscope.aggregation import GAF, Decision, Mean
from gafscope.errors import UserError

EACH_SIGN = np.array([[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1], [1, -1, -1, -1]], dtype=float)


def accepted(decision: Decision) -> list[int]:
    return decision.accepted.nonzero().flatten().tolist()


def test_decisions_and_updates_equal_algorithm_1_on_explicit_vectors():
    kinds, steps = set(), []
    for rows, tau, kind in cases(900):
        expected = explicit_rules.gaf(rows, tau)
        decision = GAF(tau)(gramian(rows))
        assert accepted(decision) == expected.accepted, (kind, tau)
        assert decision.step == expected.step
        np.testing.assert_allclose(decision.distances, expected.distances, rtol=0, atol=1e-9)
        weights = np.zeros(len(rows))
        weights[expected.accepted] = 1 / max(len(expected.accepted), 1)
        np.testing.assert_allclose(decision.weights, weights, rtol=1e-15)
        update = flat(gradient_rows(rows).combine(decision.weights))
        scale = np.abs(rows[expected.accepted]).max(initial=1e-30)
        np.testing.assert_allclose(update, expected.update, rtol=1e-12, atol=1e-13 * scale)
        kinds.add(kind)
        steps.append((expected.step, 0 < len(expected.accepted) < len(rows)))
    # The cases must hold all that they promise: steps, skips and partly accepted macrobatches.
    assert kinds == set(ODD)
    assert min(np.mean(steps, axis=0)) > 0.2
    assert np.mean(steps, axis=0)[0] < 0.9


@pytest.mark.parametrize("tau", [0.3, 0.95, 0.97, 1.0, 1.05, 1.6])
@pytest.mark.parametrize("visit", [1, 2, 5])
@pytest.mark.parametrize("margin", [-1e-9, 1e-9])
def test_a_distance_within_a_billionth_of_tau_falls_on_the_right_side(tau, visit, margin):
    random = np.random.default_rng(visit)
    rows = random.normal(size=(visit + 1, 50)) * 0.05 + random.normal(size=50)
    direction = rows[:-1].sum(0)
    direction /= np.linalg.norm(direction)
    across = random.normal(size=50)
    across -= (across @ direction) * direction
    across /= np.linalg.norm(across)
    cosine = 1 - tau - margin
    rows[-1] = 3.7 * (cosine * direction + math.sqrt(1 - cosine**2) * across)
    earlier = [i for i in explicit_rules.gaf(rows, tau).accepted if i < visit]
    assert visit == 1 or earlier == list(range(visit))
    decision = GAF(tau)(gramian(rows))
    assert float(decision.distances[-1]) == pytest.approx(tau + margin, abs=1e-12)
    assert decision.step == (visit > 1 or margin < 0)
    assert accepted(decision)[-1:] == ([visit] if margin < 0 else list(range(visit))[1:][-1:])


@pytest.mark.parametrize(
    ("second", "tau"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)], ids=["same", ".5", "1", "1.5"]
)
def test_a_distance_of_exactly_tau_is_accepted(second, tau):
    rows = EACH_SIGN[[0, second]]
    assert explicit_rules.distance(rows[1], rows[0]) == tau
    decision = GAF(tau)(gramian(rows))
    assert float(decision.distances[1]) == tau
    assert decision.weights.tolist() == [0.5, 0.5]
    if tau > 0:
        assert not GAF(math.nextafter(tau, 0))(gramian(rows)).step


def test_opposed_rows_are_at_distance_2():
    rows = np.array([[3.0, 4.0], [-6.0, -8.0]])
    assert GAF(2.0)(gramian(rows)).step
    decision = GAF(math.nextafter(2.0, 0))(gramian(rows))
    assert not decision.step
    assert decision.distances.tolist()[1:] == [2.0]


def test_the_distance_is_to_the_running_sum_not_to_the_last_or_the_first_row():
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
    decision = GAF(1.0)(gramian(rows))
    assert accepted(decision) == [0, 1, 2, 3]
    expected = [math.nan, 1.0, 0.0, 1.0]
    np.testing.assert_allclose(decision.distances, expected, rtol=0, atol=1e-15)


def test_order_matters():
    rows = np.array([[1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1]])
    assert accepted(GAF(0.97)(gramian(rows))) == []
    assert accepted(GAF(0.97)(gramian(rows[[1, 2, 0]]))) == [0, 1]


def test_a_sum_that_has_cancelled_has_no_direction():
    rows = np.array([[0.1, 0.7], [-0.1, -0.7], [0.3, 0.1], [0.3, -0.2]])
    decision = GAF(2.0)(gramian(rows))
    # At the third visit the sum is 0: distance 1; at the fourth it is the third row.
    np.testing.assert_allclose(
        decision.distances[1:], [2.0, 1.0, explicit_rules.distance(rows[3], rows[2])], atol=1e-12
    )


def test_a_sum_that_has_cancelled_to_rounding_noise_has_no_direction_either():
    for seed in range(50):
        random = np.random.default_rng(seed)
        a, b, last = random.normal(size=(3, 20))
        decision = GAF(2.0)(gramian(np.stack([a, b, -(a + b), last])))
        assert float(decision.distances[3]) == 1.0


def test_a_small_sum_that_is_no_noise_keeps_its_direction():
    random = np.random.default_rng(0)
    a, b, last = random.normal(size=(3, 20))
    rows = np.stack([a, 1e-5 * b - a, last])
    expected = explicit_rules.gaf(rows, 2.0).distances[2]
    assert abs(expected - 1) > 0.01
    assert float(GAF(2.0)(gramian(rows)).distances[2]) == pytest.approx(expected, abs=1e-4)


def test_zero_rows_in_front_do_not_start_the_sum():
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.1]])
    decision = GAF(0.5)(gramian(rows))
    assert decision.weights.tolist() == [0.0, 0.5, 0.5]
    assert decision.distances.tolist()[0] == 1
    assert math.isnan(decision.distances[1])
    assert GAF(1.0)(gramian(rows)).weights.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_first_row_is_passed_over(bad):
    rows = np.array([[bad, 0.0], [1.0, 0.0], [1.0, 0.1]])
    decision = GAF(0.5)(gramian(rows))
    assert decision.weights.tolist() == [0.0, 0.5, 0.5]
    assert decision.finite.tolist() == [False, True, True]
    assert decision.distances.isnan().tolist() == [True, True, False]
    update = gradient_rows(rows).combine(decision.weights)
    np.testing.assert_allclose(flat(update), [1.0, 0.05])


def test_one_finite_row_left_gaf_skips_and_mean_steps():
    rows = np.array([[math.nan, 0.0], [1.0, 2.0], [math.inf, 0.1]])
    skipped = GAF(2.0)(gramian(rows))
    assert not skipped.step
    assert skipped.weights.tolist() == [0, 0, 0]
    assert skipped.accepted.tolist() == [False, False, False]
    assert skipped.finite.tolist() == [False, True, False]
    assert Mean()(gramian(rows)).weights.tolist() == [0, 1, 0]


def test_at_tau_2_it_is_the_mean_bit_for_bit():
    for rows, _, kind in cases(300):
        if not np.isfinite(rows).all():
            continue
        gaf, mean = GAF(2)(gramian(rows)), Mean()(gramian(rows))
        assert torch.equal(gaf.weights, mean.weights), kind
        assert torch.equal(gaf.accepted, mean.accepted)
        assert torch.equal(gaf.distances.nan_to_num(-1), mean.distances.nan_to_num(-1))
        assert gaf.step == mean.step is True
        gradients = gradient_rows(rows)
        ours, theirs = gradients.combine(gaf.weights), gradients.combine(mean.weights)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_default_is_the_papers_threshold():
    assert GAF().tau == 0.97


@pytest.mark.parametrize("tau", [-1e-9, 2.0000001, math.nan, math.inf, -math.inf, 97])
def test_a_threshold_that_no_distance_can_have_is_refused(tau):
    with pytest.raises(UserError, match=r"tau.*\[0, 2\]") as error:
        GAF(tau)
    assert str(tau) in str(error.value)


def test_a_single_micro_gradient_cannot_be_compared():
    with pytest.raises(UserError, match=r"GAF needs at least 2 micro-gradients.*k = 1"):
        GAF()(gramian(np.ones((1, 3))))


def test_rules_are_values():
    assert GAF(0.9) == GAF(0.9) != GAF(0.8)
    with pytest.raises(AttributeError):
        GAF().tau = 0.5  # type: ignore[misc]
