from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage as sklearn_shrinkage

from gafscope import geometry
from gafscope.errors import UserError
from gafscope.geometry.mahalanobis import (
    ledoit_wolf_shrinkage,
    mahalanobis_squares,
    span_dimension,
)

SHAPES = [(3, 50), (8, 50), (8, 7), (12, 5), (40, 3), (5, 1)]


def make(k: int, size: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(k, size)) * np.arange(1, size + 1) ** -0.7 + random.normal(size=size)


def gram(rows: np.ndarray) -> torch.Tensor:
    return geometry.gramian(torch.from_numpy(rows))


def coordinates(rows: np.ndarray) -> np.ndarray:
    """Coordinates of the centred rows in an orthonormal basis of their span."""
    centred = rows - rows.mean(0)
    _, sizes, basis = np.linalg.svd(centred, full_matrices=False)
    return centred @ basis[sizes > 1e-9 * sizes[0]].T


def explicit(rows: np.ndarray, rho: float) -> np.ndarray:
    """P x P inverse; beyond the span of the rows any multiple of the identity will do."""
    k, size = rows.shape
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / k
    m = np.trace(covariance) / np.linalg.matrix_rank(centred)
    inverse = np.linalg.inv((1 - rho) * covariance + rho * m * np.eye(size))
    away = [row - np.delete(rows, i, 0).mean(0) for i, row in enumerate(rows)]
    return np.array([v @ inverse @ v for v in away])


@pytest.mark.parametrize(("k", "size"), SHAPES)
@pytest.mark.parametrize("rho", [0.05, 0.5, 1.0])
def test_distances_equal_those_of_the_explicit_inverse(k, size, rho):
    rows = make(k, size)
    found = mahalanobis_squares(gram(rows), rho)
    np.testing.assert_allclose(found, explicit(rows, rho), rtol=1e-9)


@pytest.mark.parametrize(("k", "size"), [(12, 5), (40, 3), (5, 1)])
def test_without_shrinkage_more_rows_than_dimensions_are_enough(k, size):
    rows = make(k, size)
    found = mahalanobis_squares(gram(rows), 0.0)
    np.testing.assert_allclose(found, explicit(rows, 0.0), rtol=1e-8)
    # The trace of the hat matrix: squared distances to the common mean add up to k r.
    assert float(found.sum()) * ((k - 1) / k) ** 2 == pytest.approx(k * size)


@pytest.mark.parametrize(("k", "size"), SHAPES)
def test_ledoit_wolf_equals_sklearn_in_the_span(k, size):
    rows = make(k, size)
    if size == 1:
        # In one dimension there is nothing to shrink; sklearn says 0 there.
        assert ledoit_wolf_shrinkage(gram(rows)) == 1.0
        return
    rho = ledoit_wolf_shrinkage(gram(rows))
    assert rho == pytest.approx(sklearn_shrinkage(coordinates(rows)), rel=1e-8)
    estimated = mahalanobis_squares(gram(rows))
    np.testing.assert_allclose(estimated, explicit(rows, rho), rtol=1e-8)


def test_ledoit_wolf_in_the_whole_space_is_sklearns_own():
    rows = make(40, 3)
    assert 0 < sklearn_shrinkage(rows) < 1
    assert ledoit_wolf_shrinkage(gram(rows)) == pytest.approx(sklearn_shrinkage(rows), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-70, 1e-3, 1e40])
def test_scaling_all_rows_changes_nothing(scale):
    rows = make(7, 30)
    np.testing.assert_allclose(
        mahalanobis_squares(gram(rows * scale)), mahalanobis_squares(gram(rows)), rtol=1e-8
    )


def test_the_distance_grows_with_the_deviation():
    rows = make(12, 40)
    rows[3] += 10 * np.random.default_rng(1).normal(size=40)
    squares = mahalanobis_squares(gram(rows))
    assert int(squares.argmax()) == 3
    assert squares[3] > 4 * squares[np.arange(12) != 3].max()


def test_odd_rows():
    rows = make(6, 20)
    rows[1] = 0
    spoilt = rows.copy()
    spoilt[4, 3] = np.nan
    squares = mahalanobis_squares(gram(spoilt))
    assert math.isnan(squares[4])
    expected = mahalanobis_squares(gram(np.delete(rows, 4, 0)))
    np.testing.assert_allclose(np.delete(squares.numpy(), 4), expected, rtol=1e-9)
    assert span_dimension(gram(spoilt)) == 4
    nothing = gram(np.full((3, 2), np.nan))
    assert mahalanobis_squares(nothing).isnan().all()
    assert span_dimension(nothing) == 0
    assert ledoit_wolf_shrinkage(nothing) == 1.0
    assert mahalanobis_squares(gram(np.array([[1.0], [np.inf]]))).isnan().all()


def test_rows_that_are_all_alike_are_at_distance_0():
    for row in (np.array([0.1, 0.7, 1 / 3]), np.zeros(3)):
        rows = np.tile(row, (4, 1))
        assert span_dimension(gram(rows)) == 0
        assert mahalanobis_squares(gram(rows)).tolist() == [0.0] * 4


def test_a_singular_covariance_is_refused():
    rows = make(5, 50)
    with pytest.raises(UserError, match=r"covariance of 5 gradients is singular.*ledoit-wolf"):
        mahalanobis_squares(gram(rows), 0.0)


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1, math.nan, "oas"])
def test_a_shrinkage_out_of_range_is_refused(shrinkage):
    with pytest.raises(UserError, match="shrinkage must be 'ledoit-wolf' or a number"):
        mahalanobis_squares(torch.eye(3, dtype=torch.float64), shrinkage)
