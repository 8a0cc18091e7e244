"""Outliers of the spectrum: none in flat noise, as many as were put in otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gafscope import metrics
from gafscope.gradients import Gramian


def draw(variances: np.ndarray, k: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    # The common mean is no outlier.
    return random.normal(size=(k, len(variances))) * np.sqrt(variances) + 3.0


def spectrum(rows: np.ndarray) -> metrics.Spectrum:
    return metrics.spectrum(Gramian(torch.from_numpy(rows @ rows.T)))


def spiked(size: int, *spikes: float) -> np.ndarray:
    variances = np.ones(size)
    variances[: len(spikes)] = spikes
    return variances


@pytest.mark.parametrize(("size", "k"), [(4, 32), (50, 32), (400, 16), (400, 64), (3000, 32)])
def test_flat_noise_shows_no_outliers(size, k):
    counts = [spectrum(draw(np.ones(size), k, seed)).outliers.value for seed in range(60)]
    assert np.mean(np.array(counts) == 0) >= 0.95


@pytest.mark.parametrize(
    "spikes",
    [(100,), (2000,), (200, 100, 60), (100,) * 10, (3000, 60)],
    ids=["one", "most of the variance", "three", "ten alike", "one behind another"],
)
def test_spikes_are_counted(spikes):
    counts = [spectrum(draw(spiked(400, *spikes), 32, seed)).outliers.value for seed in range(20)]
    assert np.mean(np.array(counts) == len(spikes)) >= 0.9


def test_a_direction_too_weak_to_tell_from_noise_does_not_count():
    # Below sqrt(d / N) = 3.6 a direction is lost in the bulk.
    counts = [spectrum(draw(spiked(400, 2.0), 32, seed)).outliers.value for seed in range(20)]
    assert np.mean(counts) < 0.3


def test_eigenvalues_are_those_of_the_sample_covariance():
    rows = draw(spiked(6, 4.0), 20, 0)
    found = spectrum(rows)
    expected = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    assert found.eigenvalues[:6].numpy() == pytest.approx(expected, rel=1e-9)
    assert found.eigenvalues[6:].numpy() == pytest.approx(np.zeros(13), abs=1e-12)
    assert len(found.eigenvalues) == 19


def test_edge_and_dimension_of_the_bulk():
    found = spectrum(draw(spiked(1000, 500.0), 48, 1))
    n = 47
    assert found.outliers.value == 1
    assert found.outliers.n == 48
    # Marchenko and Pastur's edge of what is left, a little exceeded by Tracy and Widom's width.
    assert found.edge == pytest.approx((1 + np.sqrt(1000 / n)) ** 2, rel=0.1)
    assert found.bulk_dimension == pytest.approx(1000, rel=0.25)
    assert found.eigenvalues[1] <= found.edge < found.eigenvalues[0]


def test_equal_rows_have_no_outliers():
    found = metrics.spectrum(Gramian(torch.ones(8, 8)))
    assert found.outliers.value == 0
    assert found.edge == 0
