"""Coverage of the 95% intervals: Gaussian rows with a mean and a spectrum that is not flat."""

from __future__ import annotations

import math

import pytest
import torch
from metric_rows import Gaussian

from gafscope import metrics
from gafscope.gradients import GradientRows, Gramian


def coverage(metric, rows: torch.Tensor, truth: float) -> float:
    products = rows @ rows.mT
    found = [metric(Gramian(matrix)) for matrix in products]
    return sum(estimate.low <= truth <= estimate.high for estimate in found) / len(found)


@pytest.fixture(scope="module")
def law() -> Gaussian:
    return Gaussian(size=40, decay=0.5, share=0.2)


@pytest.fixture(scope="module")
def many(law) -> torch.Tensor:
    """Enough rows to take expectations from."""
    return law.draw(300_000)


@pytest.fixture(scope="module")
def samples(law, many) -> torch.Tensor:
    """1,000 samples of 32 rows; `many` is drawn first, so that the order of tests is no matter."""
    return law.draw(1000, 32)


def test_distances(many, samples):
    unit = many / many.norm(dim=1, keepdim=True)
    # |mean of unit rows|^2 exceeds its expectation by a pair of a row with itself.
    cosine = float(unit.mean(0).square().sum()) - 1 / len(many)
    assert 0.93 <= coverage(metrics.mean_distance, samples, 1 - cosine) <= 0.97
    apart = float((many[::2] - many[1::2]).norm(dim=1).mean())
    assert 0.93 <= coverage(metrics.l2_distance, samples, apart) <= 0.97


def test_signs(many, samples):
    opposed = float(((many[::2] * many[1::2]).sum(1) < 0).double().mean())
    assert 0.93 <= coverage(metrics.fraction_opposed, samples, opposed) <= 0.97


def test_functions_of_the_signal(law, samples):
    coherence = 1 + 31 * law.share
    noise = 1 / law.share - 1
    assert 0.93 <= coverage(metrics.m_coherence, samples, coherence) <= 0.97
    assert 0.93 <= coverage(metrics.gradient_diversity, samples[:500], 1 / coherence) <= 0.97
    assert 0.93 <= coverage(metrics.norm_test, samples[:500], (1 - law.share) / coherence) <= 0.97
    assert 0.93 <= coverage(metrics.noise_scale, samples, noise) <= 0.97


def test_sixteen_rows(law, samples):
    few = samples[:, :16]
    assert 0.93 <= coverage(metrics.noise_scale, few, 1 / law.share - 1) <= 0.97


def test_norm_spread(many, samples):
    norms = many.norm(dim=1)
    spread = float(norms.std() / norms.mean())
    assert 0.93 <= coverage(metrics.gradient_norm_spread, samples, spread) <= 0.97


def test_effective_dimension():
    law = Gaussian(size=40, decay=0.7, share=0.2, seed=1)
    dimension = float(law.variances.sum() ** 2 / law.variances.square().sum())
    rows = law.draw(500, 24)
    assert 0.93 <= coverage(metrics.effective_dimension, rows, dimension) <= 0.97


def test_gsnr(law, samples):
    ratio = float((law.mean**2 / law.variances).mean())
    found = [metrics.gsnr(GradientRows({"w": rows})) for rows in samples[:600]]
    covered = sum(estimate.low <= ratio <= estimate.high for estimate in found) / len(found)
    assert 0.93 <= covered <= 0.97


def test_without_signal_intervals_are_safe_and_noise_scale_refuses():
    rows = Gaussian(size=100, share=0.0).draw(500, 16)
    assert coverage(metrics.mean_distance, rows, 1.0) >= 0.95
    found = [metrics.noise_scale(Gramian(matrix)) for matrix in rows @ rows.mT]
    assert sum(math.isnan(estimate.value) for estimate in found) >= 0.975 * len(found)
