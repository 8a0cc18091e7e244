from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from gafscope.geometry import cosine_distance, cross_gramian, gramian


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close_rows(k: int, n: int, distance: float = 1e-6) -> Tensor:
    """Rows about `distance` apart: one direction and a little of another in each."""
    rows = random(k, n, seed=n % 97)
    rows[1:] = rows[0] + (2 * distance) ** 0.5 * rows[1:]
    return rows


def exact_dot(a: Tensor, b: Tensor) -> np.longdouble:
    """Sum the products in 80-bit floats."""
    wide = (a.reshape(-1).double().numpy(), b.reshape(-1).double().numpy())
    return np.sum(wide[0].astype(np.longdouble) * wide[1])


def exact_distance(a: Tensor, b: Tensor) -> float:
    norms = np.sqrt(exact_dot(a, a)) * np.sqrt(exact_dot(b, b))
    return float(1 - exact_dot(a, b) / norms)


@pytest.mark.parametrize("n", [500, 30_000, 1_048_577, 5_000_000])
@pytest.mark.parametrize("k", [2, 16])
def test_distances_of_a_millionth_are_right_to_one_percent_in_float32(k, n):
    if k * n > 40_000_000:
        n = 2_500_000  # 16 rows of 5 million would take most of the test's time to draw
    rows = close_rows(k, n)
    distance = cosine_distance(gramian(rows))
    for i, j in [(0, 1), (1, k - 1), (0, k - 1)]:
        if i != j:
            assert distance[i, j] == pytest.approx(exact_distance(rows[i], rows[j]), rel=0.01)
    expected = exact_distance(rows[0], rows[1])
    assert 1e-7 < expected < 1e-5


@pytest.mark.parametrize("value", [0.3, 0.1, 0.7])
def test_rounding_errors_that_do_not_average_out_do_no_harm(value):
    # Where all products are alike, so are their errors in float32.
    rows = torch.full((2, 3_000_000), value)
    rows[1, ::2] *= 1 + 1.4e-3
    rows[1, 1::2] *= 1 - 1.4e-3
    expected = exact_distance(rows[0], rows[1])
    assert cosine_distance(gramian(rows))[0, 1] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_reduced_matmul_precision_changes_nothing(precision):
    rows = close_rows(8, 1_100_000)
    expected = gramian(rows), cross_gramian(rows[:3], rows[3:])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = gramian(rows), cross_gramian(rows[:3], rows[3:])
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("n", [100, 1_100_000])
def test_autocast_changes_nothing(n):
    rows = close_rows(3, n)
    expected = gramian(rows), cross_gramian(rows[:1], rows[1:])
    with torch.autocast("cpu", torch.bfloat16):
        found = gramian(rows), cross_gramian(rows[:1], rows[1:])
        assert torch.equal(cosine_distance(found[0]), cosine_distance(expected[0]))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 255, 70_001])
def test_products_equal_float64_ones(dtype, n):
    rows, others = random(5, n, dtype=dtype), random(3, n, seed=1, dtype=dtype)
    a, b = rows.double().numpy(), others.double().numpy()
    tight = {"rtol": 1e-12, "atol": 1e-9}
    np.testing.assert_allclose(gramian(rows).numpy(), a @ a.T, **tight)
    np.testing.assert_allclose(cross_gramian(rows, others).numpy(), a @ b.T, **tight)
    for result in (gramian(rows), cross_gramian(rows, others)):
        assert result.dtype == torch.float64


def test_gramian_is_exactly_symmetric_and_carries_no_graph():
    rows = random(7, 400_000).requires_grad_()
    matrix = gramian(rows)
    assert torch.equal(matrix, matrix.T)
    assert not matrix.requires_grad
    assert not cross_gramian(rows, rows[:2]).requires_grad


@pytest.mark.parametrize("n", [1000, 1_200_000])
@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e18, 1e25])
def test_tiny_and_huge_rows_keep_their_products(n, scale):
    rows = close_rows(3, n)
    rows[2] = rows[0] * scale
    a = rows.double().numpy()
    np.testing.assert_allclose(gramian(rows).numpy(), a @ a.T, rtol=1e-9)
    distance = cosine_distance(gramian(rows))
    assert distance[0, 2] == pytest.approx(exact_distance(rows[0], rows[2]), abs=1e-9)
    assert distance[0, 1] == pytest.approx(exact_distance(rows[0], rows[1]), rel=0.01)


@pytest.mark.parametrize("n", [10, 300_000, 1_200_000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_row_gives_nan_in_its_row_and_column_and_nowhere_else(n, bad):
    rows = random(5, n)
    rows[0, :3] = 0  # inf * 0 and inf * 1 must look alike
    clean = gramian(rows)
    rows[3, 1] = bad
    matrix = gramian(rows)
    others = torch.tensor([0, 1, 2, 4])
    assert matrix[3].isnan().all()
    assert matrix[:, 3].isnan().all()
    assert torch.equal(matrix[others][:, others], clean[others][:, others])
    cross = cross_gramian(rows[:2], rows[2:])
    torch.testing.assert_close(cross[:, [0, 2]], clean[:2][:, [2, 4]])


def test_strides_do_not_matter():
    rows = random(40, 6).T
    np.testing.assert_allclose(gramian(rows), rows.double() @ rows.double().T, rtol=1e-12)
    np.testing.assert_allclose(gramian(rows[::2, ::3]), gramian(rows[::2, ::3].clone()))


def test_empty_rows_have_no_product():
    assert torch.equal(gramian(torch.zeros(3, 0)), torch.zeros(3, 3, dtype=torch.float64))


def test_shapes_are_checked_in_tests():
    with pytest.raises(TypeCheckError):
        cross_gramian(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(TypeCheckError):
        gramian(torch.ones(2, 3, 4))
    with pytest.raises(TypeCheckError):
        cosine_distance(torch.ones(2, 3, dtype=torch.float64))
