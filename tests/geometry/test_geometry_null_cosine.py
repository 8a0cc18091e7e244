"""Acceptance under a true null: independent rows with a known covariance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gafscope.errors import UserError
from gafscope.geometry import (
    Spectrum,
    null_interval,
    null_quantile,
    null_spectrum,
)

SPECTRA = {
    "flat": np.ones(400),
    "slow": np.arange(1, 401) ** -0.5,
    "steep": np.arange(1, 401) ** -1.5,
    "30 large": np.r_[np.full(30, 10.0), np.ones(370)],
    "30 huge": np.r_[np.full(30, 100.0), np.ones(370)],
}
RATES = (0.01, 0.05, 0.1)


def draw(spectrum: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    return random.normal(size=(count, len(spectrum))) * np.sqrt(spectrum)


def null_cosines(spectrum: np.ndarray, count: int = 1200) -> np.ndarray:
    """Simulate cosines of independent rows of the whole dimension, sorted."""
    random = np.random.default_rng(99)
    sides = [draw(spectrum, count, random) for _ in range(2)]
    a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    return np.sort((a @ b.T).ravel())


def measured_rate(cosines: np.ndarray, tau: float) -> float:
    return 1 - np.searchsorted(cosines, 1 - tau) / len(cosines)


def rates_over_gramians(spectrum: np.ndarray, k: int, gramians: int) -> np.ndarray:
    """Estimate tau from one Gramian after another; (gramians, rates) true acceptance."""
    random = np.random.default_rng(0)
    cosines = null_cosines(spectrum)
    found = []
    for _ in range(gramians):
        rows = draw(spectrum, k, random) + 2 * random.normal(size=len(spectrum))  # a common mean
        estimate = null_spectrum(torch.from_numpy(rows @ rows.T))
        found.append([measured_rate(cosines, null_quantile(estimate, rate)) for rate in RATES])
    return np.array(found)


@pytest.mark.parametrize("name", SPECTRA)
def test_a_tau_from_one_gramian_of_32_rows_accepts_what_was_asked(name):
    relative = rates_over_gramians(SPECTRA[name], 32, 100).mean(0) / RATES
    assert (relative > 0.5).all(), relative
    assert (relative < 1.5).all(), relative


@pytest.mark.slow
@pytest.mark.parametrize("k", [16, 32, 64])
@pytest.mark.parametrize("name", SPECTRA)
def test_acceptance_and_its_spread_over_many_gramians(name, k):
    rates = rates_over_gramians(SPECTRA[name], k, 400) / RATES
    print(f"{name:9} k={k} mean {rates.mean(0).round(2)} sd {rates.std(0).round(2)}")
    assert (rates.mean(0) > 0.5).all()
    assert (rates.mean(0) < 1.5).all()


def test_the_normal_quantile_alone_would_fail_on_a_steep_spectrum():
    spectrum = SPECTRA["steep"]
    dimension = spectrum.sum() ** 2 / (spectrum**2).sum()
    cosines = null_cosines(spectrum)
    normal = [1 - stats.norm.isf(rate) / math.sqrt(dimension) for rate in RATES]
    assert measured_rate(cosines, normal[0]) < 0.002
    known = Spectrum(tuple(spectrum[:20]), 380, float(spectrum[20:].mean()))
    for rate in RATES:
        found = measured_rate(cosines, null_quantile(known, rate))
        assert found == pytest.approx(rate, rel=0.12)


@pytest.mark.parametrize("dimension", [20, 100, 1000])
@pytest.mark.parametrize("rate", RATES)
def test_a_known_flat_spectrum_has_the_quantiles_of_students_t(dimension, rate):
    # For uniform directions in m dimensions, c sqrt((m - 1) / (1 - c^2)) is Student's t.
    t = stats.t.isf(rate, dimension - 1)
    exact = 1 - t / math.sqrt(dimension - 1 + t * t)
    found = null_quantile(Spectrum((), dimension, 3.0), rate)
    assert 1 - found == pytest.approx(1 - exact, rel=0.04)


def test_the_threshold_does_not_depend_on_the_scale_and_repeats_itself():
    rows = draw(SPECTRA["slow"], 32, np.random.default_rng(1))
    matrix = torch.from_numpy(rows @ rows.T)
    tau = null_quantile(null_spectrum(matrix), 0.05)
    assert null_quantile(null_spectrum(matrix), 0.05) == tau
    assert null_quantile(null_spectrum(matrix * 1e8), 0.05) == pytest.approx(tau, rel=1e-9)


@pytest.mark.parametrize("name", ["flat", "steep"])
def test_the_estimated_spectrum_finds_what_stands_out(name):
    random = np.random.default_rng(2)
    spectrum, found = SPECTRA[name], []
    for _ in range(40):
        rows = draw(spectrum, 32, random)
        found.append(null_spectrum(torch.from_numpy(rows @ rows.T)))
    total = np.mean([estimate.moment(1) for estimate in found])
    assert total == pytest.approx(spectrum.sum(), rel=0.1)
    largest = [max(estimate.leading, default=0.0) for estimate in found]
    if name == "flat":
        assert np.mean([value**4 for value in largest]) < 0.01 * 400**2
    else:
        assert np.median(largest) == pytest.approx(1, rel=0.3)


def test_a_few_long_rows_are_no_common_direction():
    random, taus = np.random.default_rng(5), []
    for _ in range(20):
        rows = draw(SPECTRA["slow"], 20, random) * random.exponential(size=(20, 1)) ** 2
        taus.append(null_quantile(null_spectrum(torch.from_numpy(rows @ rows.T)), 0.05))
    true = 1 - float(np.quantile(null_cosines(SPECTRA["slow"]), 0.95))
    assert np.median(taus) == pytest.approx(true, abs=0.06)


def test_the_interval_covers_the_true_threshold():
    random = np.random.default_rng(3)
    for spectrum, floor in ((SPECTRA["slow"], 0.9), (SPECTRA["steep"], 0.7)):
        true = 1 - float(np.quantile(null_cosines(spectrum), 0.95))
        covered = []
        for _ in range(15):
            rows = draw(spectrum, 32, random)
            tau, low, high = null_interval(torch.from_numpy(rows @ rows.T), 0.05)
            assert low < tau < high
            covered.append(low <= true <= high)
        assert np.mean(covered) >= floor


@pytest.mark.parametrize("width", [1, 2, 5])
def test_rows_of_a_few_numbers_have_thresholds_too(width):
    rows = np.random.default_rng(4).normal(size=(32, width))
    tau = null_quantile(null_spectrum(torch.from_numpy(rows @ rows.T)), 0.1)
    assert 0 <= tau < 1


def test_rows_that_share_nothing_are_orthogonal_under_the_null():
    assert null_quantile(null_spectrum(torch.eye(16).double()), 0.05) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("rate", [0, -0.1, 0.51, 1, math.nan])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(UserError, match=r"false_accept.*\(0, 0\.5\]"):
        null_quantile(Spectrum((), 400, 1.0), rate)


@pytest.mark.parametrize("matrix", [torch.eye(3), torch.ones(9, 9), torch.full((9, 9), math.nan)])
def test_too_few_different_rows_are_refused(matrix):
    with pytest.raises(UserError, match="at least 4 finite rows that are not all equal"):
        null_spectrum(matrix.double())
