"""Intervals: the jackknife done the slow way, and the policy on when there is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from metric_rows import gradient_rows, random_rows
from scipy import stats

from gafscope import metrics
from gafscope.geometry import independence
from gafscope.metrics import Estimate


def rho(source) -> float:
    """|mu|^2 / E|g|^2 out of m-coherence, which is 1 + (n - 1) rho."""
    found = metrics.m_coherence(source)
    return (found.value - 1) / (found.n - 1)


def same(number: float) -> float:
    return number


SMOOTH = [
    (metrics.mean_distance, lambda rows: metrics.mean_distance(rows).value, same),
    (metrics.cosine_stiffness, lambda rows: metrics.cosine_stiffness(rows).value, same),
    (metrics.fraction_opposed, lambda rows: metrics.fraction_opposed(rows).value, same),
    (metrics.sign_stiffness, lambda rows: metrics.sign_stiffness(rows).value, same),
    (metrics.l2_distance, lambda rows: metrics.l2_distance(rows).value, same),
    (metrics.gsnr, lambda rows: metrics.gsnr(rows).value, same),
    (
        metrics.gradient_norm_spread,
        lambda rows: 1 / metrics.gradient_norm_spread(rows).value,
        lambda end: 1 / end,
    ),
    (
        metrics.effective_dimension,
        lambda rows: math.log(metrics.effective_dimension(rows).value),
        math.exp,
    ),
    (metrics.m_coherence, rho, lambda end: 1 + 11 * end),
    (metrics.gradient_diversity, rho, lambda end: 1 / (1 + 11 * end)),
    (metrics.norm_test, rho, lambda end: (1 - end) / (1 + 11 * end)),
    (metrics.noise_scale, rho, lambda end: 1 / end - 1),
]


@pytest.mark.parametrize(("metric", "statistic", "back"), SMOOTH)
def test_interval_is_the_jackknife_over_rows(metric, statistic, back):
    n = 12
    signs = (metrics.fraction_opposed, metrics.sign_stiffness)
    rows = random_rows(n, signal=0.5 if metric in signs else 1.5)
    without = np.array([statistic(gradient_rows(np.delete(rows, i, 0))) for i in range(n)])
    reach = stats.t.ppf(0.975, n - 1) * math.sqrt((n - 1) / n * without.var() * n)
    value = statistic(gradient_rows(rows))
    ends = sorted([back(value - reach), back(value + reach)])
    found = metric(gradient_rows(rows))
    assert (found.low, found.high) == pytest.approx(tuple(ends), rel=1e-8)
    assert found.low < found.value < found.high


def test_interval_stays_in_range():
    rows = np.array([[1.0, 0], [1, 0.1], [1, -0.1], [1, 0.2], [-1, 1.5]])
    assert metrics.mean_distance(gradient_rows(rows)).low == 0.0
    assert metrics.cosine_stiffness(gradient_rows(rows)).high == 1.0


def test_effective_dimension_of_many_rows_deletes_groups():
    rows = random_rows(130, size=30)
    groups = np.array_split(np.arange(130), 64)
    without = [
        math.log(independence.effective_dimension(torch.from_numpy(left @ left.T)))
        for left in (np.delete(rows, group, 0) for group in groups)
    ]
    reach = stats.t.ppf(0.975, 63) * math.sqrt(63 * np.var(without))
    found = metrics.effective_dimension(gradient_rows(rows))
    assert math.log(found.high / found.value) == pytest.approx(reach, rel=1e-8)
    assert found.n == 130


@pytest.mark.parametrize(
    "metric",
    [
        metrics.confusion,
        metrics.mahalanobis_distance,
        metrics.unanimous_sign,
        metrics.majority_sign,
        metrics.outlier_directions,
        lambda rows: metrics.distance_quantile(rows, 0.9),
    ],
)
def test_extremes_quantiles_and_counts_carry_none(metric):
    assert not metric(gradient_rows(random_rows(20))).has_interval


def test_two_rows_give_a_value_without_interval():
    found = metrics.mean_distance(gradient_rows(random_rows(2)))
    assert 0 < found.value < 2
    assert not found.has_interval
    assert "at least 3 rows" in found.note
    four = metrics.effective_dimension(gradient_rows(random_rows(4)))
    assert not four.has_interval
    assert "more rows" in four.note


def test_noise_scale_refuses_where_the_signal_may_be_zero():
    found = metrics.noise_scale(gradient_rows(random_rows(16, size=200, signal=0)), 8)
    assert math.isnan(found.value)
    assert not found.has_interval
    assert found.note.startswith("cannot know")
    assert "use more or larger microbatches" in found.note
    assert math.isnan(metrics.noise_scale(gradient_rows(np.zeros((4, 3)))).value)


def test_noise_scale_counts_samples():
    rows = gradient_rows(random_rows(16, signal=2.0))
    one, eight = metrics.noise_scale(rows), metrics.noise_scale(rows, 8)
    assert (eight.value, eight.low, eight.high) == pytest.approx(
        (8 * one.value, 8 * one.low, 8 * one.high)
    )


def test_signs_without_a_counterexample_carry_no_interval():
    rows = random_rows(20, signal=10)
    found = metrics.fraction_opposed(gradient_rows(rows))
    assert (found.value, found.has_interval) == (0.0, False)
    assert "0 of 190 pairs opposed" in found.note
    rows[0] *= -1
    assert metrics.fraction_opposed(gradient_rows(rows)).has_interval
    assert metrics.sign_stiffness(gradient_rows(rows)).has_interval


def test_estimate_shows_itself():
    found = Estimate(0.9731, 0.9512, 0.9903, n=32)
    assert repr(found) == "0.973 [0.951, 0.990] (n=32)"
    assert found.has_interval
    noted = Estimate(3.2e-7, math.nan, math.nan, n=4, note="1 < 2")
    assert repr(noted) == "3.2e-07 (n=4; 1 < 2)"
    assert "1 &lt; 2" in noted._repr_html_()
    assert "3.2e-07" in noted._repr_html_()
