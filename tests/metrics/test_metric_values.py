"""Values: worked out by hand, and against explicit loops over rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from metric_rows import gradient_rows, random_rows

from gafscope import metrics

# Squares 4, 4, 9; inner products 0, -6, 0: two directions, the third row against the first.
HAND = [[2.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (metrics.mean_distance, (1 + 2 + 1) / 3),
        (metrics.fraction_opposed, 1 / 3),
        (metrics.sign_stiffness, -1 / 3),
        (metrics.cosine_stiffness, -1 / 3),
        (metrics.confusion, 6.0),
        (metrics.gradient_diversity, 17 / 5),
        (metrics.m_coherence, 5 / 17),
        # Mean (-1, 2) / 3; squared deviations 17 - 5 / 3 = 46 / 3.
        (metrics.norm_test, (46 / 3 / 2 / 3) / (5 / 9)),
        (metrics.l2_distance, (math.sqrt(8) + 5 + math.sqrt(13)) / 3),
        (metrics.gradient_norm_spread, math.sqrt(1 / 3) / (7 / 3)),
        (metrics.unanimous_sign, 0.0),
        (metrics.majority_sign, 0.0),
    ],
)
def test_three_rows_by_hand(metric, value):
    found = metric(gradient_rows(HAND))
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.n == 3


def test_quantiles_by_hand():
    rows = gradient_rows(HAND)
    assert metrics.distance_quantile(rows, 0.5).value == 1.0
    assert metrics.distance_quantile(rows, 1.0).value == 2.0
    assert metrics.distance_quantile(rows, 0.75).value == pytest.approx(1.5)


def test_noise_scale_is_the_papers_formula():
    u, k = 5, 9
    rows = random_rows(k, signal=2.0)
    small, big = (rows**2).sum(1).mean(), (rows.mean(0) ** 2).sum()
    b, large = u, k * u
    square = (large * big - b * small) / (large - b)
    noise = (small - big) / (1 / b - 1 / large)
    found = metrics.noise_scale(gradient_rows(rows), u)
    assert found.value == pytest.approx(noise / square, rel=1e-12)
    assert 0 < found.low < found.value < found.high


def test_norm_test_is_variance_of_the_mean_over_its_square():
    rows = random_rows(6)
    expected = rows.var(0, ddof=1).sum() / 6 / (rows.mean(0) ** 2).sum()
    assert metrics.norm_test(gradient_rows(rows)).value == pytest.approx(expected, rel=1e-12)


def test_effective_dimension_is_its_u_statistic_over_quadruples():
    rows = random_rows(7)
    product, square = [], []
    for a, b, c, d in itertools.permutations(rows, 4):
        product.append(((a - b) ** 2).sum() * ((c - d) ** 2).sum() / 4)
        square.append(((a - b) @ (c - d)) ** 2 / 4)
    found = metrics.effective_dimension(gradient_rows(rows))
    assert found.value == pytest.approx(np.mean(product) / np.mean(square), rel=1e-10)


def test_mahalanobis_distance_against_explicit_covariance():
    rows = random_rows(12, size=4)
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / 12
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / 4 * np.eye(4)
    apart = centred * 12 / 11
    expected = np.mean([v @ np.linalg.solve(shrunk, v) for v in apart]) / 4
    found = metrics.mahalanobis_distance(gradient_rows(rows), shrinkage=0.3)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert expected < (12 / 11) ** 2
    everywhere = metrics.mahalanobis_distance(gradient_rows(rows), shrinkage=1)
    assert everywhere.value == pytest.approx((12 / 11) ** 2)


def test_gsnr_against_explicit_coordinates():
    rows = random_rows(8)
    n = len(rows)
    plain = rows.mean(0) ** 2 / rows.var(0, ddof=1)
    expected = ((n - 3) / (n - 1) * plain - 1 / n).mean()
    assert metrics.gsnr(gradient_rows(rows)).value == pytest.approx(expected, rel=1e-12)


def test_gsnr_is_unbiased_for_gaussian_rows():
    random = np.random.default_rng(0)
    coordinates = random.normal(size=(8, 200_000)) * 3 + 1.5
    assert metrics.gsnr(gradient_rows(coordinates)).value == pytest.approx(0.25, abs=0.005)


def test_gsnr_leaves_out_coordinates_that_do_not_vary():
    rows = random_rows(8)
    constant = np.column_stack([rows, np.zeros(8), np.full(8, 0.1)])
    found = metrics.gsnr(gradient_rows(constant))
    assert found.value == pytest.approx(metrics.gsnr(gradient_rows(rows)).value, rel=1e-9)
    assert "2 of 9 coordinates do not vary" in found.note


def test_sign_shares_by_hand():
    signs = [[1, -1, 1, 0, 1], [2, -3, 1, 0, 1], [1, -1, -1, 0, 1], [1, -1, -1, 0, 0]]
    assert metrics.unanimous_sign(gradient_rows(signs)).value == 2 / 5
    # Two of four are no majority, three are.
    assert metrics.majority_sign(gradient_rows(signs)).value == 3 / 5


def test_stiffness_by_class_against_explicit_pairs():
    rows = random_rows(9)
    classes = np.array(["b", "a", "c", "b", "a", "a", "b", "b", "a"])
    table = metrics.stiffness_by_class(gradient_rows(rows), classes)
    assert list(zip(table.class_a, table.class_b, strict=True)) == [
        ("a", "a"), ("a", "b"), ("a", "c"), ("b", "b"), ("b", "c"), ("c", "c"),
    ]  # fmt: skip
    for line in table.itertuples():
        pairs = [
            (rows[i], rows[j])
            for i, j in itertools.combinations(range(9), 2)
            if sorted([classes[i], classes[j]]) == [line.class_a, line.class_b]
        ]
        assert line.pairs == len(pairs)
        if not pairs:
            assert math.isnan(line.sign)
            assert math.isnan(line.cosine)
            continue
        dots = [a @ b for a, b in pairs]
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
        assert line.sign == pytest.approx(np.mean(np.sign(dots)))
        assert line.cosine == pytest.approx(np.mean(cosines))


def test_stiffness_by_class_leaves_out_what_is_not_finite():
    rows = random_rows(5)
    kept = metrics.stiffness_by_class(gradient_rows(rows[[0, 2, 3, 4]]), [1, 1, 2, 2])
    rows[1] = np.nan
    table = metrics.stiffness_by_class(gradient_rows(rows), [1, 7, 1, 2, 2])
    assert table.equals(kept)


def test_equal_rows():
    rows = gradient_rows(np.tile([3.0, 4.0, 0.5], (6, 1)))
    for metric, value in {
        metrics.mean_distance: 0.0,
        metrics.cosine_stiffness: 1.0,
        metrics.gradient_diversity: 1 / 6,
        metrics.m_coherence: 6.0,
        metrics.norm_test: 0.0,
        metrics.noise_scale: 0.0,
        metrics.gradient_norm_spread: 0.0,
        metrics.l2_distance: 0.0,
        metrics.unanimous_sign: 1.0,
    }.items():
        assert metric(rows).value == pytest.approx(value, abs=1e-7), metric


def test_rows_that_cancel_or_are_zero():
    cancel = gradient_rows([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    assert metrics.gradient_diversity(cancel).value == math.inf
    assert metrics.m_coherence(cancel).value == 0.0
    assert metrics.norm_test(cancel).value == math.inf
    zero = gradient_rows(np.zeros((4, 3)))
    assert metrics.mean_distance(zero).value == 1.0
    assert metrics.fraction_opposed(zero).value == 0.0
    for metric in (metrics.m_coherence, metrics.gradient_diversity, metrics.gradient_norm_spread):
        assert math.isnan(metric(zero).value)
        assert "all gradients are zero" in metric(zero).note
