"""Unbiased moments against brute force over all quadruples of rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from gafscope.geometry import covariance_moments, decorrelated, effective_dimension


def products(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows @ rows.T)


def u_statistics(rows: np.ndarray) -> tuple[float, float, float]:
    """Average the kernels over all ordered quadruples of different rows."""
    trace, trace_squared, square_trace = [], [], []
    for a, b, c, d in itertools.permutations(rows, 4):
        trace.append(np.sum((a - b) ** 2) / 2)
        trace_squared.append(np.sum((a - b) ** 2) * np.sum((c - d) ** 2) / 4)
        square_trace.append(np.dot(a - b, c - d) ** 2 / 4)
    return tuple(float(np.mean(values)) for values in (trace, trace_squared, square_trace))


@pytest.mark.parametrize("k", [4, 5, 7])
def test_the_moments_are_the_u_statistics(k):
    rows = np.random.default_rng(k).gamma(1.0, size=(k, 9)) + 3
    found = covariance_moments(products(rows))
    expected = u_statistics(rows)
    np.testing.assert_allclose(
        (found.trace, found.trace_squared, found.square_trace), expected, rtol=1e-9
    )


def test_the_moments_do_not_see_the_common_mean():
    random = np.random.default_rng(0)
    rows = random.normal(size=(12, 30))
    shifted = rows + 1e3 * random.normal(size=30)
    assert effective_dimension(products(shifted)) == pytest.approx(
        effective_dimension(products(rows)), rel=1e-6
    )


@pytest.mark.parametrize("law", ["normal", "heavy"])
def test_the_moments_are_unbiased_whatever_the_law(law):
    random = np.random.default_rng(1)
    spectrum = np.arange(1, 51) ** -0.5
    found = []
    for _ in range(2000):
        rows = random.normal(size=(8, 50)) * np.sqrt(spectrum)
        if law == "heavy":  # lengths vary by a factor with mean square 1
            rows *= np.sqrt(random.exponential(size=(8, 1)))
        moments = covariance_moments(products(rows))
        found.append((moments.trace_squared, moments.square_trace))
    mean = np.mean(found, axis=0)
    error = np.std(found, axis=0) / math.sqrt(len(found))
    expected = np.array([spectrum.sum() ** 2, (spectrum**2).sum()])
    assert (np.abs(mean - expected) < 3.5 * error).all()
    assert (error < 0.06 * expected).all()


def test_the_effective_dimension_of_a_flat_spectrum_is_the_dimension():
    random = np.random.default_rng(2)
    found = [effective_dimension(products(random.normal(size=(32, 100)))) for _ in range(100)]
    assert np.mean(found) == pytest.approx(100, rel=0.03)


def test_scaling_changes_nothing():
    rows = np.random.default_rng(3).normal(size=(10, 20))
    assert effective_dimension(products(rows * 1e-6)) == pytest.approx(
        effective_dimension(products(rows)), rel=1e-9
    )


def test_rows_that_are_not_finite_are_left_out():
    rows = np.random.default_rng(4).normal(size=(10, 20))
    spoilt = np.insert(rows, 3, np.nan, axis=0)
    assert effective_dimension(products(spoilt)) == effective_dimension(products(rows))
    torch.testing.assert_close(decorrelated(products(spoilt)), decorrelated(products(rows)))


@pytest.mark.parametrize("rows", [np.eye(3), np.full((6, 4), np.nan), np.ones((8, 4))])
def test_too_few_or_equal_rows_have_no_dimension(rows):
    assert math.isnan(effective_dimension(products(rows)))


def test_orthogonal_rows_have_no_common_direction():
    assert effective_dimension(torch.eye(8).double()) == math.inf


def test_one_direction_is_dimension_one():
    rows = np.random.default_rng(5).normal(size=(20, 1))
    assert 1 <= effective_dimension(products(rows)) < 1.5


def test_decorrelated_rows_are_an_orthonormal_change_without_the_mean():
    n = 6
    factors = decorrelated(torch.eye(n).double())  # F F^T
    torch.testing.assert_close(factors, torch.eye(n - 1).double())
    rows = np.random.default_rng(6).normal(size=(n, 40))
    centred = rows - rows.mean(0)
    expected = np.linalg.eigvalsh(centred @ centred.T)[1:]
    np.testing.assert_allclose(
        torch.linalg.eigvalsh(decorrelated(products(rows + 7))).numpy(), expected, rtol=1e-9
    )


def test_decorrelated_rows_have_no_mean_cosine_where_centred_ones_have():
    random = np.random.default_rng(7)
    k, apart, centred = 8, [], []
    off = ~np.eye(k, dtype=bool)
    for _ in range(400):
        rows = random.normal(size=(k, 200)) + 5
        apart.append(decorrelated(products(rows)).numpy()[off[1:, 1:]].mean() / 200)
        less = rows - rows.mean(0)
        centred.append((less @ less.T)[off].mean() / 200)
    assert abs(np.mean(apart)) < 0.005
    assert np.mean(centred) == pytest.approx(-1 / k, abs=0.01)
