"""Products in one pass over the memory, against float64 ones of the whole vectors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gafscope.geometry import StreamingProducts, pair_distance

SHAPES = [(700, 500), (3,), (), (40, 30, 3, 3), (600, 500), (0,)]


def gradients(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def exact(a: list[Tensor], b: list[Tensor]) -> float:
    pairs = zip(a, b, strict=True)
    return sum(float(x.double().reshape(-1) @ y.double().reshape(-1)) for x, y in pairs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_both_products_equal_float64_ones(dtype):
    g, s = gradients(0, dtype), gradients(1, dtype)
    scale = math.sqrt(exact(g, g) * exact(s, s))
    products = StreamingProducts()
    for _ in range(2):  # the scratch memory of the first call must not show in the second
        square, dot = products(g, s)
        assert square == pytest.approx(exact(g, g), rel=1e-7)
        assert dot == pytest.approx(exact(g, s), abs=1e-7 * scale)
    assert isinstance(square, float)
    assert isinstance(dot, float)


def test_distances_of_a_millionth_are_right_to_one_percent():
    for size in (500, 300_000, 3_000_000):
        generator = torch.Generator().manual_seed(size)
        s, other = torch.randn(2, size, generator=generator)
        g = s + 1.4e-3 * other
        products = StreamingProducts()
        (square, dot), (other_square, _) = products([g], [s]), products([s], [])
        wide = g.double(), s.double()
        exact_distance = 1 - float(wide[0] @ wide[1] / wide[0].norm() / wide[1].norm())
        assert pair_distance(dot, square, other_square) == pytest.approx(exact_distance, rel=0.01)


def test_nothing_in_the_running_vector_yet():
    g = gradients(0)
    square, dot = StreamingProducts()(g, [])
    assert square == pytest.approx(exact(g, g), rel=1e-7)
    assert dot == 0


@pytest.mark.parametrize("hole", [0, 1, 3])
def test_none_stands_for_zeros_on_either_side(hole):
    g, s = gradients(0), gradients(1)
    zeros = [torch.zeros_like(x) for x in g]
    scale = math.sqrt(exact(g, g) * exact(s, s))
    without_g = [*g[:hole], None, *g[hole + 1 :]]
    wanted = [*g[:hole], zeros[hole], *g[hole + 1 :]]
    square, dot = StreamingProducts()(without_g, s)
    assert square == pytest.approx(exact(wanted, wanted), rel=1e-7)
    assert dot == pytest.approx(exact(wanted, s), abs=1e-7 * scale)
    without_s = [*s[:hole], None, *s[hole + 1 :]]
    square, dot = StreamingProducts()(g, without_s)
    assert square == pytest.approx(exact(g, g), rel=1e-7)
    assert dot == pytest.approx(
        exact(g, [*s[:hole], zeros[hole], *s[hole + 1 :]]), abs=1e-7 * scale
    )
    assert StreamingProducts()([None] * 6, s) == (0, 0)


def test_memory_format_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    g, s = torch.randn(2, 90, 80, 7, 8, generator=generator)
    square, dot = StreamingProducts()([g], [s])
    last_g, last_s = (x.to(memory_format=torch.channels_last) for x in (g, s))
    for pair in [(last_g, last_s), (last_g, s), (g, last_s)]:
        found = StreamingProducts()([pair[0]], [pair[1]])
        # The order of the sums differs, and the product is small beside the norms.
        assert found[0] == pytest.approx(square, rel=1e-7)
        assert found[1] == pytest.approx(dot, abs=1e-7 * square)


@pytest.mark.parametrize("size", [100, 400_000])
@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e18, 1e25])
def test_tiny_and_huge_gradients(size, scale):
    generator = torch.Generator().manual_seed(0)
    g, s = torch.randn(2, size, generator=generator)
    s = g + 0.1 * s
    for left, right in [(g * scale, s * scale), (g * scale, s), (g, s * scale)]:
        square, dot = StreamingProducts()([left], [right])
        assert square == pytest.approx(exact([left], [left]), rel=1e-6)
        assert dot == pytest.approx(exact([left], [right]), rel=1e-6)


@pytest.mark.parametrize("size", [100, 400_000])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_has_no_finite_square(size, bad):
    g = torch.ones(size)
    g[size // 2] = bad
    square, _ = StreamingProducts()([torch.ones(3), g], [torch.ones(3), torch.ones(size)])
    assert not math.isfinite(square)


def test_autocast_changes_nothing():
    g, s = gradients(0), gradients(1)
    expected = StreamingProducts()(g, s)
    with torch.autocast("cpu", torch.bfloat16):
        assert StreamingProducts()(g, s) == expected
