"""Each weighting against obvious formulas on explicit vectors, and values made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from explicit_rules import distance
from random_rows import gramian
from scipy.optimize import minimize

from gafscope.aggregation import (
    GAF,
    CliqueGAF,
    GeometricMedian,
    InverseVariance,
    KMeansDirections,
    Krum,
    L2Threshold,
    LeaveOneOut,
    MahalanobisThreshold,
    MultiKrum,
    SoftGAF,
    TopM,
)
from gafscope.errors import UserError
from gafscope.gradients import Gramian

ORTHOGONAL = np.diag([1.0, 1.0, 1.0, 2.0])
AGREEING = torch.tensor([[1.0, 0.9, -0.5], [0.9, 1.0, -0.5], [-0.5, -0.5, 1.0]])


def normal(seed: int, k: int = 9, size: int = 6, agreement: float = 0.6) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(k, size)) + agreement * random.normal(size=size)
    return rows * random.uniform(0.3, 3, size=(k, 1))


def to_others(rows: np.ndarray) -> np.ndarray:
    return np.array([distance(g, np.delete(rows, i, 0).sum(0)) for i, g in enumerate(rows)])


def uniform(accepted: np.ndarray) -> np.ndarray:
    return accepted / max(accepted.sum(), 1)


@pytest.mark.parametrize("seed", range(8))
def test_distances_to_the_sum_of_the_others(seed):
    rows = normal(seed)
    expected = to_others(rows)
    for rule in (LeaveOneOut(), SoftGAF(), TopM(3), InverseVariance()):
        np.testing.assert_allclose(rule(gramian(rows)).distances, expected, atol=1e-12)
    accepted = expected <= 0.6
    hard = LeaveOneOut(0.6)(gramian(rows))
    assert hard.step == (accepted.sum() >= 2)
    np.testing.assert_allclose(hard.weights, uniform(accepted) * hard.step, atol=1e-12)
    sigmoid = 1 / (1 + np.exp((expected - 0.6) / 0.2))
    soft = SoftGAF(0.6, 0.2)(gramian(rows))
    assert soft.step == hard.step
    np.testing.assert_allclose(soft.weights, sigmoid / sigmoid.sum() * soft.step, rtol=1e-10)
    chosen = np.isin(np.arange(9), np.argsort(expected)[:3])
    np.testing.assert_allclose(TopM(3)(gramian(rows)).weights, chosen / 3)


@pytest.mark.parametrize("seed", range(8))
def test_a_cold_soft_rule_is_leave_one_out(seed):
    rows = normal(seed)
    for tau in (0.4, 0.7, 1.0):
        hard = LeaveOneOut(tau)(gramian(rows)).weights
        cold = SoftGAF(tau, 1e-6)(gramian(rows)).weights
        np.testing.assert_allclose(cold, hard, atol=1e-9)
    hot = SoftGAF(2.0, 1e6)(gramian(rows)).weights
    np.testing.assert_allclose(hot, np.full(9, 1 / 9), rtol=1e-5)


def test_soft_weights_where_every_sigmoid_vanishes_but_those_at_the_threshold():
    decision = SoftGAF(0.6, 1e-5)(Gramian(AGREEING))
    # float32 0.9 - 0.5 leaves the two a hair off the threshold, on one side, alike.
    assert decision.step == LeaveOneOut(0.6)(Gramian(AGREEING)).step
    far = SoftGAF(0.7, 1e-4)(Gramian(AGREEING))
    assert far.weights.tolist() == [0.5, 0.5, 0.0]
    assert far.accepted.tolist() == [True, True, False]


def test_the_hand_made_agreement():
    # <g_1, g_2 + g_3> = 0.4, |g_2 + g_3|^2 = 1; <g_3, g_1 + g_2> = -1, |g_1 + g_2|^2 = 3.8.
    expected = [0.6, 0.6, 1 + 1 / math.sqrt(3.8)]
    np.testing.assert_allclose(LeaveOneOut()(Gramian(AGREEING)).distances, expected, atol=1e-7)


def test_one_row_that_agrees_with_the_rest_is_not_enough():
    # The first row is the direction of the other two together; neither of them agrees.
    rows = np.array([[1.0, 0.0], [1.0, 5.0], [1.0, -5.0]])
    for rule in (LeaveOneOut(0.9), SoftGAF(0.9, 0.5)):
        decision = rule(gramian(rows))
        assert (decision.distances <= 0.9).tolist() == [True, False, False]
        assert not decision.step


def test_others_that_cancel_to_rounding_noise_have_no_direction():
    for seed in range(30):
        a, b, last = np.random.default_rng(seed).normal(size=(3, 20))
        decision = LeaveOneOut(0.9)(gramian(np.stack([a, b, -(a + b), last])))
        assert float(decision.distances[3]) == 1.0


@pytest.mark.parametrize("seed", range(6))
def test_pairs_are_judged_alike_by_all_that_compare_directions(seed):
    rows = normal(seed, k=2)
    for tau in (0.3, 0.8, 1.2):
        rules = (GAF(tau), GAF(tau, "best"), GAF(tau, "worst"), CliqueGAF(tau), LeaveOneOut(tau))
        weights = [rule(gramian(rows)).weights.tolist() for rule in rules]
        assert all(found == weights[0] for found in weights)


@pytest.mark.parametrize("seed", range(8))
def test_l2_distances(seed):
    rows = normal(seed)
    away = [np.linalg.norm(g - np.delete(rows, i, 0).mean(0)) for i, g in enumerate(rows)]
    expected = np.array(away) / np.median(np.linalg.norm(rows, axis=1))
    threshold = float(np.sort(expected)[4:6].mean())
    decision = L2Threshold(threshold)(gramian(rows))
    np.testing.assert_allclose(decision.distances, expected, rtol=1e-9)
    np.testing.assert_allclose(decision.weights, (expected <= threshold) / 5, atol=1e-12)


def test_l2_by_hand():
    # The median of the norms that are not 0 is 2; a distance of exactly the threshold is accepted.
    assert L2Threshold(1.0)(gramian(np.array([[0.0], [2.0]]))).weights.tolist() == [0.5, 0.5]
    decision = L2Threshold(1.5)(gramian(ORTHOGONAL))
    expected = [math.sqrt(1 + 6 / 9)] * 3 + [math.sqrt(4 + 3 / 9)]
    np.testing.assert_allclose(decision.distances, expected)
    assert decision.accepted.tolist() == [True, True, True, False]
    same_length = L2Threshold(1.16)(gramian(np.eye(4)))
    np.testing.assert_allclose(same_length.distances, [math.sqrt(4 / 3)] * 4)
    assert same_length.accepted.all()
    assert not L2Threshold(1.15)(gramian(np.eye(4))).step


@pytest.mark.parametrize("size", [4, 40])
def test_mahalanobis_distances(size):
    rows = normal(3, size=size)
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / 9
    r = min(size, 8)
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / r * np.eye(size)
    away = np.array([g - np.delete(rows, i, 0).mean(0) for i, g in enumerate(rows)])
    expected = np.einsum("ip,pq,iq->i", away, np.linalg.inv(shrunk), away) / r
    threshold = float(np.sort(expected)[5:7].mean())
    decision = MahalanobisThreshold(threshold, 0.3)(gramian(rows))
    np.testing.assert_allclose(decision.distances, expected, rtol=1e-9)
    np.testing.assert_allclose(decision.weights, (expected <= threshold) / 6, atol=1e-12)


def test_mahalanobis_of_isotropic_rows_is_the_squared_length():
    # |v_i|^2 = 4/3 for each, tr(S) = sum |x_i|^2 / 4 = 3/4 in r = 3 dimensions, so m = 1/4.
    decision = MahalanobisThreshold(1.8)(gramian(np.eye(4)))
    np.testing.assert_allclose(decision.distances, [4 / 3 / (1 / 4) / 3] * 4)
    assert decision.step
    assert not MahalanobisThreshold(1.7)(gramian(np.eye(4))).step


def test_mahalanobis_with_a_singular_covariance_is_refused():
    with pytest.raises(UserError, match=r"singular without shrinkage.*'ledoit-wolf'"):
        MahalanobisThreshold(2.0, 0.0)(gramian(normal(0, size=40)))
    assert MahalanobisThreshold(2.0, 0.0)(gramian(normal(0, size=3))).step


@pytest.mark.parametrize("seed", range(5))
def test_the_geometric_median_has_the_least_sum_of_distances(seed):
    rows = normal(seed)
    rows[0] *= 50

    def cost(v: np.ndarray) -> float:
        return float(np.linalg.norm(rows - v, axis=1).sum())

    decision = GeometricMedian()(gramian(rows))
    found = decision.weights.numpy() @ rows
    best = minimize(cost, np.median(rows, 0), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(found, best.x, atol=1e-5 * np.abs(rows[1:]).max())
    assert cost(found) <= cost(best.x) * (1 + 1e-10)
    scale = np.median(np.linalg.norm(rows, axis=1))
    expected = np.linalg.norm(rows - found, axis=1) / scale
    np.testing.assert_allclose(decision.distances, expected, rtol=1e-5)


def test_the_geometric_median_of_numbers_is_their_median():
    rows = np.array([[5.0], [-1.0], [2.0], [1000.0], [3.0]])
    decision = GeometricMedian()(gramian(rows))
    assert float(decision.weights.numpy() @ rows[:, 0]) == pytest.approx(3.0, abs=1e-3)
    triangle = np.array([[math.cos(a), math.sin(a)] for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)])
    np.testing.assert_allclose(GeometricMedian()(gramian(triangle)).weights, [1 / 3] * 3)


def test_fewer_than_half_cannot_carry_the_geometric_median_away():
    rows = normal(0, agreement=1.0)
    clean = GeometricMedian()(gramian(rows)).weights.numpy() @ rows
    rows[:4] = -1e6 * rows.mean(0)
    spoilt = GeometricMedian()(gramian(rows)).weights.numpy() @ rows
    assert np.linalg.norm(spoilt - clean) < 10 * np.linalg.norm(clean)


def test_inverse_variances_by_hand():
    # Orthogonal rows around a mean of 0 have variances |g_i|^2 = 1, 1, 1, 4, their mean 7/4.
    shrunk = 0.5 * np.array([1, 1, 1, 4]) + 0.5 * 7 / 4
    expected = (1 / shrunk) / (1 / shrunk).sum()
    np.testing.assert_allclose(InverseVariance(0.5)(gramian(ORTHOGONAL)).weights, expected)
    np.testing.assert_allclose(InverseVariance(1.0)(gramian(ORTHOGONAL)).weights, [0.25] * 4)


def test_inverse_variances_find_the_noisy_rows_and_lower_the_error():
    random = np.random.default_rng(0)
    mean, spreads = random.normal(size=400), np.array([1, 1, 1, 1, 1, 6.0, 6.0, 6.0])
    errors = []
    for _ in range(20):
        rows = mean + spreads[:, None] * random.normal(size=(8, 400))
        weights = InverseVariance(0.05)(gramian(rows)).weights.numpy()
        assert weights[:5].min() > 3 * weights[5:].max()
        errors.append([np.linalg.norm(w @ rows - mean) for w in (weights, np.full(8, 1 / 8))])
    weighted, plain = np.mean(errors, axis=0)
    ideal = math.sqrt(400 / (1 / spreads**2).sum())
    assert weighted < 0.4 * plain
    assert weighted < 1.1 * ideal


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CliqueGAF(2.5), "tau is a cosine distance"),
        (lambda: LeaveOneOut(-0.1), "tau is a cosine distance"),
        (lambda: SoftGAF(3.0), "tau is a cosine distance"),
        (lambda: SoftGAF(0.9, 0.0), "temperature is a width.*positive, but is 0"),
        (lambda: SoftGAF(0.9, math.nan), "temperature is a width"),
        (lambda: TopM(0), "m, the number of rows.*at least 1, but is 0"),
        (lambda: MultiKrum(1, 0), "m, the number of rows.*at least 1, but is 0"),
        (lambda: Krum(-1), "byzantine.*at least 0, but is -1"),
        (lambda: L2Threshold(0.0), "threshold must be positive and finite, but is 0"),
        (lambda: MahalanobisThreshold(math.inf), "threshold must be positive and finite"),
        (lambda: MahalanobisThreshold(1.0, "oas"), "shrinkage must be 'ledoit-wolf' or a number"),
        (lambda: InverseVariance(0.0), r"shrinkage must lie in \(0, 1\], .* but is 0"),
        (lambda: GeometricMedian(2.0), r"smoothing is a share .* \(0, 1\], but is 2"),
        (lambda: KMeansDirections(0), "clusters must be at least 1, but is 0"),
        (lambda: KMeansDirections(2, "all"), "Unknown use of the clusters 'all'"),
        (lambda: KMeansDirections(outlier_tau=4.0), "tau is a cosine distance"),
        (lambda: GAF(anchor="middle"), "Unknown anchor 'middle'.*first, random, best, worst"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
