from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gafscope.geometry import cosine_distance, gramian, mean_pairwise_distance, pair_distance

NAN, INF = math.nan, math.inf
vectors = st.lists(
    st.lists(st.integers(-9, 9).map(float), min_size=4, max_size=4), min_size=1, max_size=6
)


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_formula():
    matrix = gramian(rows([3, 4], [4, 3], [0, -2], [-3, -4]))
    expected = rows(
        [0, 1 - 24 / 25, 1 + 4 / 5, 2],
        [1 - 24 / 25, 0, 1 + 3 / 5, 1 + 24 / 25],
        [1 + 4 / 5, 1 + 3 / 5, 0, 1 - 4 / 5],
        [2, 1 + 24 / 25, 1 - 4 / 5, 0],
    )
    torch.testing.assert_close(cosine_distance(matrix), expected, rtol=0, atol=1e-15)


def test_the_diagonal_is_exactly_zero():
    values = torch.randn(9, 1000, generator=torch.Generator().manual_seed(0))
    assert (cosine_distance(gramian(values)).diagonal() == 0).all()


def test_rounding_never_leaves_the_range():
    # Inconsistent products, as rounding makes them: the cosine would be 1.5 and -1.5.
    matrix = rows([1, 1.5, -1.5], [1.5, 1, -1.5], [-1.5, -1.5, 1])
    assert torch.equal(cosine_distance(matrix), rows([0, 0, 2], [0, 0, 2], [2, 2, 0]))
    assert pair_distance(1.5, 1, 1) == 0
    assert pair_distance(-1.5, 1, 1) == 2


def test_a_zero_row_is_at_distance_1_from_everything_itself_included():
    distance = cosine_distance(gramian(rows([0, 0], [1, 2], [0, 0], [-1, 5])))
    assert (distance[0] == 1).all()
    assert (distance[:, 2] == 1).all()
    assert distance[1, 1] == distance[3, 3] == 0
    assert pair_distance(0, 0, 1) == pair_distance(0, 1, 0) == pair_distance(0, 0, 0) == 1


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_row_that_is_not_finite_has_no_distance_to_anything(bad):
    distance = cosine_distance(gramian(rows([1, 1], [bad, 1], [0, 0], [2, 0])))
    assert distance[1].isnan().all()
    assert distance[:, 1].isnan().all()
    assert not distance[[0, 2, 3]][:, [0, 2, 3]].isnan().any()
    assert distance[2, 0] == 1
    assert distance[0, 3] == pytest.approx(1 - 0.5**0.5)


def test_an_infinite_diagonal_counts_as_not_finite_whatever_stands_beside_it():
    matrix = rows([INF, 3, 0], [3, 1, 0], [0, 0, 1])
    distance = cosine_distance(matrix)
    assert distance[0].isnan().all()
    assert distance[1, 2] == 1


@pytest.mark.parametrize("square", [NAN, INF])
def test_pair_distance_of_something_not_finite(square):
    assert math.isnan(pair_distance(1, square, 1))
    assert math.isnan(pair_distance(1, 1, square))
    assert math.isnan(pair_distance(NAN, square, 0))


def test_squares_whose_product_overflows_or_vanishes():
    for size in (1e300, 1e-300):
        assert pair_distance(0.5 * size, size, size) == pytest.approx(0.5)
        matrix = size * rows([1, 0.5], [0.5, 1])
        assert cosine_distance(matrix)[0, 1] == pytest.approx(0.5)


@given(vectors)
def test_pair_distance_equals_the_matrix(values):
    matrix = gramian(rows(*values))
    distance = cosine_distance(matrix)
    assert torch.equal(distance, distance.T)
    assert ((distance >= 0) & (distance <= 2)).all()
    for i in range(len(values)):
        for j in range(i):
            pair = pair_distance(*(float(matrix[p]) for p in [(i, j), (i, i), (j, j)]))
            assert distance[i, j] == pytest.approx(pair, abs=1e-15)


@given(vectors, st.integers(-40, 40))
def test_distance_does_not_depend_on_scale(values, exponent):
    scaled = rows(*values) * 2.0**exponent
    assert torch.equal(cosine_distance(gramian(scaled)), cosine_distance(gramian(rows(*values))))


def test_mean_pairwise_distance_averages_each_pair_once():
    matrix = gramian(rows([1, 0], [0, 1], [-1, 0], [0, 0]))
    assert mean_pairwise_distance(matrix) == pytest.approx((1 + 2 + 1 + 1 + 1 + 1) / 6)


def test_mean_pairwise_distance_leaves_out_what_is_not_finite():
    matrix = gramian(rows([1, 0], [NAN, 1], [-1, 0], [INF, 0]))
    assert mean_pairwise_distance(matrix) == 2


@pytest.mark.parametrize("values", [[[1.0, 2.0]], [[1.0, 2.0], [NAN, 0.0]], [[NAN], [INF]]])
def test_fewer_than_two_finite_rows_have_no_mean_distance(values):
    assert math.isnan(mean_pairwise_distance(gramian(rows(*values))))
