"""Krum, k-means and cliques against obvious searches, and values made by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from explicit_rules import distance
from random_rows import gramian

from gafscope.aggregation import (
    CliqueGAF,
    KMeansDirections,
    Krum,
    MultiKrum,
)


def normal(seed: int, k: int = 9, size: int = 6, agreement: float = 0.6) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(k, size)) + agreement * random.normal(size=size)
    return rows * random.uniform(0.3, 3, size=(k, 1))


def krum_scores(rows: np.ndarray, byzantine: int) -> list[float]:
    scores = []
    for i, g in enumerate(rows):
        squares = sorted(float((g - h) @ (g - h)) for j, h in enumerate(rows) if j != i)
        scores.append(sum(squares[: len(rows) - byzantine - 2]))
    return scores


@pytest.mark.parametrize("seed", range(6))
def test_krum_on_explicit_vectors(seed):
    rows = normal(seed)
    for f in (0, 1, 3):
        scores = krum_scores(rows, f)
        decision = Krum(f)(gramian(rows))
        assert decision.weights.tolist() == np.eye(9)[int(np.argmin(scores))].tolist()
        best = np.isin(np.arange(9), np.argsort(scores)[:4])
        np.testing.assert_allclose(MultiKrum(f, 4)(gramian(rows)).weights, best / 4)
        unit = np.median(np.linalg.norm(rows, axis=1))
        expected = np.sqrt(np.array(scores) / (9 - f - 2)) / unit
        np.testing.assert_allclose(decision.distances, expected, rtol=1e-9)
    np.testing.assert_allclose(MultiKrum(3, 9)(gramian(rows)).weights, np.full(9, 1 / 9))


def test_krum_adds_up_squared_distances_as_its_paper_does():
    # The scores are 37, 26, 34, 25, 65; without squares 7, 6, 8, 7, 11, and TorchJD 0.18 takes 2.
    rows = np.array([[1.0], [2.0], [7.0], [10.0], [14.0]])
    assert krum_scores(rows, 1) == [37, 26, 34, 25, 65]
    assert Krum(1)(gramian(rows)).accepted.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("f", "m", "chosen"), [(1, 1, [4]), (2, 1, [6]), (1, 3, [3, 4, 6]), (2, 4, [3, 4, 6, 7])]
)
def test_krum_chooses_what_torchjd_chooses_where_squares_make_no_difference(f, m, chosen):
    rows = np.array(
        [
            [4, 3, 2, -2],
            [1, 1, -5, -2],
            [60, 60, 60, -80],
            [-4, -1, 4, -3],
            [-2, 1, 1, 0],
            [-3, 2, -4, 5],
            [2, 0, 5, -3],
            [-1, -5, 2, -2],
        ],
        dtype=float,
    )
    rule = Krum(f) if m == 1 else MultiKrum(f, m)
    weights = rule(gramian(rows)).weights
    np.testing.assert_allclose(weights, np.isin(np.arange(8), chosen) / m)


def test_krum_never_takes_the_arbitrary_rows():
    rows = normal(1, agreement=2.0)
    rows[[2, 5, 7]] = [[1e3] * 6, [-1e5] * 6, [np.nan] * 6]
    decision = MultiKrum(3, 5)(gramian(rows))
    assert not decision.accepted[[2, 5, 7]].any()
    assert int(decision.accepted.sum()) == 5
    rows[[0, 1, 3]] = np.nan
    assert not MultiKrum(3, 5)(gramian(rows)).step


def degrees(*angles: float) -> np.ndarray:
    return np.array([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])


def test_k_means_groups_directions_by_hand():
    rows = degrees(0, 10, 90, 20, 100, 95, 15) * np.arange(1, 8)[:, None]
    largest = KMeansDirections(2)(gramian(rows))
    assert largest.weights.tolist() == [0.25, 0.25, 0, 0.25, 0, 0, 0.25]
    means = KMeansDirections(2, "means")(gramian(rows))
    np.testing.assert_allclose(means.weights, [1 / 8, 1 / 8, 1 / 6, 1 / 8, 1 / 6, 1 / 6, 1 / 8])
    own = degrees(10, 20, 15).sum(0)
    assert float(largest.distances[0]) == pytest.approx(distance(degrees(0)[0], own), abs=1e-12)
    assert float(largest.distances[2]) == pytest.approx(
        distance(degrees(90)[0], degrees(100, 95).sum(0)), abs=1e-12
    )


def test_k_means_rejects_outliers_and_loners():
    rows = degrees(0, 5, -5, 60, 180)
    decision = KMeansDirections(2, "means", 0.2)(gramian(rows))
    # 180 degrees is alone in its cluster, 60 degrees is 0.5 from the rest of its own.
    assert decision.weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert math.isnan(decision.distances[4])
    assert float(decision.distances[3]) == pytest.approx(0.5)
    wide = KMeansDirections(2, "means", 0.6)(gramian(rows))
    assert wide.weights.tolist() == pytest.approx([0.25] * 4 + [0])
    # Opposed pairs cancel: nobody agrees with the rest of the cluster.
    assert not KMeansDirections(1, outlier_tau=0.9)(gramian(degrees(0, 90, 180, 270))).step


def test_a_cluster_as_large_is_beaten_by_a_tighter_one():
    rows = degrees(0, 30, 120, 125)
    assert KMeansDirections(2)(gramian(rows)).accepted.tolist() == [False, False, True, True]


def test_k_means_reaches_the_best_grouping_of_well_separated_directions():
    random = np.random.default_rng(0)
    for _ in range(10):
        centres = np.eye(3, 30)
        labels = random.permutation(np.repeat([0, 1, 2], [6, 4, 3]))
        rows = centres[labels] + 0.08 * random.normal(size=(13, 30))
        decision = KMeansDirections(3, "means")(gramian(rows))
        np.testing.assert_allclose(decision.weights, 1 / 3 / np.bincount(labels)[labels])


def lloyd(units: np.ndarray, clusters: int) -> tuple[np.ndarray, int]:
    """Spherical k-means on unit vectors: labels, and how often they changed."""
    centres = [units[np.argmax(units @ units.sum(0))]]
    while len(centres) < clusters:
        centres.append(units[np.argmin((units @ np.array(centres).T).max(1))])
    labels, changes = (units @ np.array(centres).T).argmax(1), 0
    while True:
        means = [units[labels == j].sum(0) for j in range(clusters)]
        moved = np.array([[1 - distance(u, m) for m in means] for u in units]).argmax(1)
        if (moved == labels).all():
            return labels, changes
        labels, changes = moved, changes + 1


def test_k_means_moves_until_nothing_moves():
    changed = 0
    for seed in range(30):
        rows = normal(seed, k=12, size=3, agreement=0.0)
        labels, changes = lloyd(rows / np.linalg.norm(rows, axis=1, keepdims=True), 3)
        weights = KMeansDirections(3, "means", 2.0)(gramian(rows)).weights.numpy()
        sizes = np.bincount(labels, minlength=3)
        used = sizes >= 2
        expected = np.where(used[labels], 1 / sizes[labels] / used.sum(), 0)
        np.testing.assert_allclose(weights, expected, atol=1e-12)
        changed += changes > 1
    assert changed > 5


def all_within(rows: np.ndarray, tau: float) -> tuple[int, float, tuple[int, ...]]:
    """Try every set; the largest, then tightest, then first one."""
    found = [(0, 0.0, ())]
    for size in range(2, len(rows) + 1):
        for members in itertools.combinations(range(len(rows)), size):
            pairs = [distance(rows[i], rows[j]) for i, j in itertools.combinations(members, 2)]
            if max(pairs) <= tau:
                found.append((-size, round(float(np.mean(pairs)), 11), members))
    return min(found)


@pytest.mark.parametrize("seed", range(12))
def test_the_clique_is_the_best_of_all_sets(seed):
    rows = normal(seed, k=8, agreement=0.3)
    if seed % 3 == 0:
        rows[2] = 0
    tau = [0.6, 0.9, 1.1][seed % 3]
    size, mean, members = all_within(rows, tau)
    decision = CliqueGAF(tau)(gramian(rows))
    assert decision.accepted.nonzero().flatten().tolist() == list(members)
    assert decision.step == (size <= -2)
    if decision.step:
        inside = decision.distances[decision.accepted]
        assert float(inside.mean()) == pytest.approx(mean, abs=1e-9)
        outside = int((~decision.accepted).nonzero()[0])
        expected = np.mean([distance(rows[outside], rows[j]) for j in members])
        assert float(decision.distances[outside]) == pytest.approx(expected)


def test_a_clique_of_one_is_skipped():
    decision = CliqueGAF(0.9)(gramian(np.eye(4)))
    assert not decision.step
    assert decision.distances.tolist() == [1.0] * 4
