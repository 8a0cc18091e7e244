"""The exact forms of a Gramian against rows written out in float64, piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ghost_reference import (
    convolution,
    error,
    gram_of_rows,
    lookup,
    normal,
    outer,
    rows_of,
)
from torch import Tensor

from gafscope.geometry import cosine_distance
from gafscope.gradients.ghost import forms
from gafscope.gradients.ghost.convolution import Convolution, shifted_gram
from gafscope.gradients.ghost.pieces import Lookup, Outer, Piece, Rows
from gafscope.gradients.ghost.products import Products

# So small that every form works in many blocks; the default, in which these sizes fit at once.
WORKSPACES = [1, 3_000, 40_000, 2 << 20]
workspaces = pytest.mark.parametrize("workspace", WORKSPACES)
# k, T, p, q; from 64 rows on, products go strip by strip.
SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (7, 1, 70, 33), (9, 6, 33, 70), (65, 4, 9, 3), (64, 2, 1, 40)]
sizes = pytest.mark.parametrize("size", SIZES)


def materialised(pieces: list[Piece], shape: tuple[int, ...], products: Products) -> Tensor:
    k = len(rows_of(pieces[0]))
    return forms._materialised(pieces, torch.Size(shape), k, products)


def looped(piece: Convolution, products: Products) -> Tensor:
    return products.gram(piece.slab(0, piece.shape[0]).flatten(1))


def taps(piece: Convolution, products: Products) -> Tensor:
    channels = forms._channels(piece, products)
    parts = [products.gram(rows) for rows in piece.taps(channels, products)]
    assert len(parts) == len(piece.geometry.offsets) * -(-piece.shape[0] // channels)
    return torch.stack(parts).sum(0)


def outer_forms(piece: Outer, products: Products) -> dict[str, Tensor]:
    given, piece = piece, piece.to(products.sums(piece.dtype))
    shape = piece.left.shape[2], piece.right.shape[2]
    return {
        "rows": forms._outer_rows_gram(piece, products),
        "ghost": forms._ghost(piece, piece, products),
        "materialised": materialised([piece], shape, products),
        "chosen": forms.gram_of([given], torch.Size(shape), len(piece.left), products)[0],
    }


def lookup_forms(piece: Lookup, products: Products) -> dict[str, Tensor]:
    given, piece = piece, piece.to(products.sums(piece.dtype))
    shape = piece.width, piece.right.shape[2]
    return {
        "ghost": forms._ghost(piece, piece, products),
        "materialised": materialised([piece], shape, products),
        "chosen": forms.gram_of([given], torch.Size(shape), len(piece.ids), products)[0],
    }


def convolution_forms(piece: Convolution, products: Products) -> dict[str, Tensor]:
    given, piece = piece, piece.to(products.sums(piece.dtype))
    found = {
        "looped": looped(piece, products),
        "chosen": forms.gram_of([given], piece.shape, piece.k, products)[0],
    }
    if piece.geometry.plain:
        found["taps"] = taps(piece, products)
        found["unfolded"] = products.gram(piece.unfolded(products.workspace, products))
        found["materialised"] = materialised([piece], tuple(piece.shape), products)
        if set(piece.geometry.stride) == {1}:
            found["shifted"] = shifted_gram(piece, products)
    return found


def assert_right(found: dict[str, Tensor], expected: Tensor, tolerance: float) -> None:
    for form, gram in found.items():
        assert error(gram, expected) <= tolerance, form


@workspaces
@sizes
def test_outer_products(size, workspace):
    piece = outer(*size)
    expected = gram_of_rows(rows_of(piece))
    assert_right(outer_forms(piece, Products(workspace=workspace)), expected, 1e-13)


@workspaces
@sizes
def test_lookups(size, workspace):
    piece = lookup(*size)
    expected = gram_of_rows(rows_of(piece))
    assert_right(lookup_forms(piece, Products(workspace=workspace)), expected, 1e-13)


@workspaces
@pytest.mark.parametrize("k", [1, 5, 66])
def test_a_layer_that_is_used_both_ways(k, workspace):
    # A tied head: an outer product and a lookup of one parameter, with other numbers of positions.
    products, shape = Products(workspace=workspace), torch.Size((23, 6))
    a, b = outer(k, 4, *shape), lookup(k, 7, *shape)
    expected = rows_of(a) @ rows_of(b).T
    norms = rows_of(a).norm(dim=1)[:, None] * rows_of(b).norm(dim=1)
    assert float(((forms._ghost(a, b, products) - expected).abs() / norms).max()) < 1e-13
    both = gram_of_rows(rows_of(a) + rows_of(b))
    assert error(materialised([a, b], tuple(shape), products), both) < 1e-13
    for pieces in ([a, b], [b, a]):
        gram, kept = forms.gram_of(pieces, shape, k, products)
        assert error(gram, both) < 1e-13
        assert kept == pieces


@workspaces
def test_several_calls_of_one_layer(workspace):
    products, shape, k = Products(workspace=workspace), torch.Size((5, 4)), 6
    others = Outer(normal(k, 7, 5, seed=8), normal(k, 7, 4, seed=9))
    for pieces in (
        [outer(k, 3, *shape), others],
        [lookup(k, 3, *shape), Lookup(torch.arange(12).view(6, 2) % 5, normal(k, 2, 4), 5)],
        [lookup(k, 3, *shape), others, outer(k, 3, *shape), lookup(k, 9, *shape)],
        [outer(k, 3, *shape), Rows(normal(k, *shape))],
        [Rows(normal(k, *shape)), lookup(k, 3, *shape), Rows(normal(k, *shape, seed=4))],
    ):
        expected = gram_of_rows(torch.stack([rows_of(piece) for piece in pieces]).sum(0))
        assert error(forms.gram_of(pieces, shape, k, products)[0], expected) < 1e-13
        rows = forms.sum_of_rows(pieces, shape)
        torch.testing.assert_close(gram_of_rows(rows), expected)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("k", [1, 6, 67])
def test_rows_of_any_shape(shape, k):
    pieces = [Rows(normal(k, *shape, seed=i)) for i in range(3)]
    expected = sum(normal(k, *shape, seed=i) for i in range(3)).reshape(k, -1)
    gram, kept = forms.gram_of(pieces, torch.Size(shape), k, Products())
    assert error(gram, gram_of_rows(expected)) < 1e-13
    weights = normal(k, seed=7)
    torch.testing.assert_close(kept[0].combine(None, weights), weights @ expected)


GEOMETRIES: dict[str, tuple] = {
    "1d": ((7, 5), (11,), (3,), {}),
    "1d padded wider than its kernel": ((3, 4), (5,), (2,), {"padding": 3}),
    "1d dilated": ((3, 4), (13,), (3,), {"padding": 2, "dilation": 3}),
    "1d strided": ((3, 4), (12,), (3,), {"stride": 2, "padding": 1}),
    "1d one output": ((3, 4), (5,), (5,), {}),
    "2d": ((4, 6), (5, 7), (3, 3), {"padding": 1}),
    "2d unpadded": ((4, 6), (9, 4), (2, 3), {}),
    "2d kernel of one": ((4, 6), (3, 2), (1, 1), {}),
    "2d kernel of one, padded": ((4, 6), (3, 2), (1, 1), {"padding": 1}),
    "2d dilated": ((3, 2), (6, 8), (3, 2), {"padding": 2, "dilation": 2}),
    "2d dilated past its input": ((3, 2), (3, 4), (3, 3), {"padding": 3, "dilation": 3}),
    "2d strided": ((4, 3), (8, 7), (3, 3), {"stride": 3, "padding": 1, "dilation": 2}),
    "2d one pixel": ((4, 3), (1, 1), (3, 3), {"padding": 1}),
    "3d": ((2, 3), (3, 4, 5), (2, 3, 2), {"padding": 1}),
    "3d dilated": ((2, 3), (5, 4, 5), (2, 1, 2), {"padding": 1, "dilation": 2}),
    "3d strided": ((2, 3), (5, 4, 6), (2, 2, 3), {"stride": 2, "padding": 1}),
    "grouped": ((4, 6), (5, 6), (3, 2), {"groups": 2, "padding": 1}),
    "depthwise": ((4, 8), (9,), (3,), {"groups": 4, "padding": 1, "stride": 2}),
    "transposed": ((3, 4), (4, 5), (3, 2), {"transposed": True, "padding": 1}),
    "transposed, grouped": (
        (4, 6),
        (5, 4),
        (2, 3),
        {"transposed": True, "groups": 2, "stride": 3, "dilation": 2, "output_padding": 1},
    ),
}
geometries = pytest.mark.parametrize("name", GEOMETRIES)


def conv(name: str, k: int, u: int, dtype: torch.dtype = torch.float64) -> Convolution:
    channels, pixels, kernel, options = GEOMETRIES[name]
    return convolution(k, u, channels, pixels, kernel, dtype=dtype, **options)


@geometries
@pytest.mark.parametrize(("k", "u"), [(1, 1), (5, 1), (3, 4), (1, 3)])
@pytest.mark.parametrize("workspace", [1, 2_000, 2 << 20])
def test_convolutions(name, k, u, workspace):
    piece = conv(name, k, u)
    expected = gram_of_rows(rows_of(piece))
    assert_right(convolution_forms(piece, Products(workspace=workspace)), expected, 1e-13)


def test_convolutions_of_many_rows():
    piece = convolution(66, 2, (3, 4), (4, 5), (3, 3), padding=1)
    expected = gram_of_rows(rows_of(piece))
    assert_right(convolution_forms(piece, Products(workspace=5_000)), expected, 1e-13)


@pytest.mark.parametrize("height", range(1, 10))
def test_the_shifted_form_of_every_number_of_pixel_rows(height):
    # It goes in four strips of the output's first dimension.
    for padding, kernel in [(0, 1), (1, 3), (2, 2), (0, 3), (3, 5)]:
        if height + 2 * padding < kernel:
            continue
        piece = convolution(3, 2, (2, 3), (height, 3), (kernel, 1), padding=padding)
        expected = gram_of_rows(rows_of(piece))
        assert error(shifted_gram(piece, Products()), expected) < 1e-13


def test_the_shifted_form_reads_nothing_that_was_not_written(monkeypatch):
    # Half of the inputs' pixel Gramian is left empty; filled with nan, it must not be seen.
    def filled(self: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype or self.dtype)

    for name in ("1d padded wider than its kernel", "2d", "2d dilated", "3d"):
        piece = conv(name, 3, 2)
        expected = gram_of_rows(rows_of(piece))
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "new_empty", filled)
            found = shifted_gram(piece, Products())
        assert error(found, expected) < 1e-13


@pytest.mark.parametrize("length", [5, 1023, 1024, (1 << 14) - 1, 1 << 14, 40_000])
@pytest.mark.parametrize("k", [1, 63, 64, 65, 130])
def test_products_of_rows_of_any_number_and_length(k, length):
    # Runs of 2^14 numbers are added up in float64; strips from 64 rows of 2^10 numbers on.
    rows = normal(k, length, dtype=torch.float32)
    expected = gram_of_rows(rows.double())
    found = Products().gram(rows)
    assert error(found, expected) < 2e-6
    assert torch.equal(found, found.T)
    assert error(Products("float64").gram(rows.double()), expected) < 1e-13
    coarse = Products("bf16").gram(rows)
    assert error(coarse, expected) < 2e-2
    torch.testing.assert_close(coarse.diagonal(), expected.diagonal(), rtol=1e-5, atol=0)


def all_forms(dtype: torch.dtype, products: Products) -> list[tuple[dict[str, Tensor], Tensor]]:
    pieces: list[tuple[Callable[..., dict[str, Tensor]], Piece]] = [
        (outer_forms, outer(70, 40, 33, 20, dtype)),
        (outer_forms, outer(4, 1, 300, 100, dtype)),
        (lookup_forms, lookup(70, 40, 50, 20, dtype)),
        (convolution_forms, convolution(9, 3, (16, 12), (9, 10), (3, 3), padding=1, dtype=dtype)),
        (convolution_forms, convolution(6, 1, (4, 6), (200,), (5,), dtype=dtype)),
        (convolution_forms, convolution(6, 1, (4, 6), (30, 20), (3, 3), stride=2, dtype=dtype)),
    ]
    return [(compute(piece, products), gram_of_rows(rows_of(piece))) for compute, piece in pieces]


@pytest.mark.parametrize("workspace", [20_000, 2 << 20])
def test_float32_against_float64(workspace):
    for found, expected in all_forms(torch.float32, Products(workspace=workspace)):
        assert_right(found, expected, 2e-6)


def test_float64_from_float32_factors():
    for found, expected in all_forms(torch.float32, Products("float64")):
        assert_right(found, expected, 1e-12)


def test_bf16():
    for found, expected in all_forms(torch.float32, Products("bf16")):
        assert_right(found, expected, 2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors(dtype):
    for found, expected in all_forms(dtype, Products()):
        assert_right(found, expected, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_distances_between_nearly_equal_rows(dtype):
    close = 1e-3 * normal(2, 30, 40, seed=7).to(dtype)
    piece = outer(1, 30, 40, 20, dtype)
    piece = Outer(piece.left + close, piece.right.repeat(2, 1, 1))
    pixels = convolution(1, 1, (8, 6), (9, 9), (3, 3), padding=1, dtype=dtype)
    seen = pixels.inputs + 1e-3 * normal(2, 8, 9, 9, seed=7).to(dtype)
    gradient = pixels.gradient.repeat(2, 1, 1, 1)
    pixels = Convolution(seen, gradient, pixels.shape, pixels.geometry, 2)
    for compute, each in ((outer_forms, piece), (convolution_forms, pixels)):
        expected = cosine_distance(gram_of_rows(rows_of(each)))[0, 1]
        assert 1e-7 < expected < 2e-6
        for form, gram in compute(each, Products("float64")).items():
            torch.testing.assert_close(
                cosine_distance(gram)[0, 1], expected, rtol=1e-2, atol=0, msg=form
            )


COMBINED: dict[str, Callable[[torch.dtype], Piece]] = {
    "rows": lambda dtype: Rows(normal(6, 3, 4, dtype=dtype)),
    "rows of a vector": lambda dtype: Rows(normal(6, 3, dtype=dtype)),
    "rows of a number": lambda dtype: Rows(normal(6, dtype=dtype)),
    "outer, left wider": lambda dtype: outer(6, 5, 7, 3, dtype),
    "outer, right wider": lambda dtype: outer(6, 5, 3, 7, dtype),
    "lookup": lambda dtype: lookup(6, 5, 4, 3, dtype),
    **{
        f"convolution, {name}, {u}": lambda dtype, name=name, u=u: conv(name, 6, u, dtype)
        for name in GEOMETRIES
        for u in (1, 3)
    },
}


@pytest.mark.parametrize("name", COMBINED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weighted_rows(name, dtype):
    piece = COMBINED[name](dtype)
    rows, weights = rows_of(piece), normal(6, seed=9)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for chosen in (None, [0], [5], [1, 3, 4], [4, 1], [0, 1, 2, 3, 4, 5]):
        index = None if chosen is None else torch.tensor(chosen)
        used = weights if index is None else weights[index]
        found = piece.combine(index, used)
        expected = torch.einsum("k,kn->n", used, rows if index is None else rows[index])
        assert found.dtype == dtype
        torch.testing.assert_close(
            found.flatten().double(), expected, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("name", COMBINED)
def test_slabs_and_first_rows(name):
    piece = COMBINED[name](torch.float64)
    rows = rows_of(piece)
    if isinstance(piece, Rows):
        first = piece.rows.shape[1]
    elif isinstance(piece, Convolution):
        first = piece.shape[0]
    else:
        first = piece.width
    whole = piece.slab(0, first)
    torch.testing.assert_close(whole.flatten(1), rows)
    if not isinstance(piece, Convolution) or piece.geometry.plain:
        for start in range(first):
            torch.testing.assert_close(piece.slab(start, start + 1), whole[:, start : start + 1])
    two = piece.first(2)
    torch.testing.assert_close(two.slab(0, first), whole[:2])
    assert two.nbytes * 3 == piece.nbytes


def test_rows_that_a_form_computed_are_kept_where_they_take_less_memory():
    for pixels in ((2, 2), (40, 40)):
        piece = convolution(2, 1, (4, 4), pixels, (3, 3), padding=1, transposed=True)
        kept = forms.gram_of([piece], piece.shape, 2, Products())[1][0]
        assert isinstance(kept, Rows) == (pixels == (40, 40))
        assert kept.nbytes <= piece.nbytes
        weights = normal(2)
        torch.testing.assert_close(kept.combine(None, weights).flatten(), weights @ rows_of(piece))
