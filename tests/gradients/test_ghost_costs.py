"""Which form the cost model takes for typical layers, and what a machine's rates are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ghost_reference import convolution, error, gram_of_rows, lookup, outer, rows_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gafscope.gradients.ghost import forms, rates
from gafscope.gradients.ghost.convolution import Convolution, Geometry
from gafscope.gradients.ghost.pieces import Lookup, Outer, Piece
from gafscope.gradients.ghost.products import Products

TYPICAL = rates._TYPICAL["cpu"]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The forms that are taken on a typical machine, which are not carried out."""
    names: list[str] = []

    def note(form: str, result: Any) -> Any:
        names.append(form)
        return result

    def gram(k: int) -> Tensor:
        return torch.zeros(k, k, dtype=torch.float64)

    def slab(self: Convolution, start: int, stop: int) -> Tensor:
        return note("looped", torch.empty(self.k, *self.shape, device="meta"))

    def taps(self: Convolution, *_: Any) -> Iterator[Tensor]:
        yield note("taps", torch.zeros(self.k, 1))

    monkeypatch.setattr(forms, "rates", lambda _: TYPICAL)
    monkeypatch.setattr(Products, "gram", lambda self, rows: gram(len(rows)))
    monkeypatch.setattr(Convolution, "slab", slab)
    monkeypatch.setattr(Convolution, "taps", taps)
    monkeypatch.setattr(
        Convolution, "unfolded", lambda self, *_: note("unfolded", torch.zeros(self.k, 1))
    )
    monkeypatch.setattr(forms, "shifted_gram", lambda piece, _: note("shifted", gram(piece.k)))
    monkeypatch.setattr(forms, "_ghost", lambda a, *_: note("ghost", gram(len(a.right))))
    monkeypatch.setattr(
        forms, "_outer_rows_gram", lambda piece, _: note("rows", gram(len(piece.right)))
    )
    monkeypatch.setattr(forms, "_materialised", lambda _pieces, _shape, k, _: note("rows", gram(k)))
    return names


def chosen(pieces: list[Piece], shape: tuple[int, ...], k: int, taken: list[str]) -> str:
    taken.clear()
    forms.gram_of(pieces, torch.Size(shape), k, Products())
    assert len(set(taken)) == 1
    return taken[0]


def conv(
    n: int, channels: int, size: int, *, u: int = 1, out: int = 0, **options: Any
) -> Convolution:
    """A padded 3x3 convolution; its factors take no memory."""
    settings = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    settings |= {"transposed": False, "output_padding": (0, 0), "groups": 1, **options}
    geometry = Geometry(**settings)
    pixels = torch.zeros(()).expand(n * u, channels, size, size)
    made = -(-size // geometry.stride[0])
    gradient = torch.zeros(()).expand(n * u, out or channels, made, made)
    shape = torch.Size((out or channels, channels // geometry.groups, *geometry.kernel))
    return Convolution(pixels, gradient, shape, geometry, n)


@pytest.mark.parametrize(
    ("piece", "form"),
    [
        (conv(16, 512, 4), "shifted"),
        (conv(64, 512, 4), "shifted"),
        (conv(128, 512, 2), "shifted"),
        (conv(16, 256, 8), "shifted"),
        (conv(16, 64, 32), "looped"),
        (conv(64, 64, 32), "looped"),
        (conv(128, 64, 32), "looped"),
        (conv(8, 64, 32, u=8), "looped"),
        (conv(16, 3, 32, out=64), "unfolded"),
        # What the other forms do not know.
        (conv(64, 512, 4, groups=512), "looped"),
        (conv(64, 512, 4, transposed=True), "looped"),
    ],
)
def test_convolutions(piece, form, taken):
    assert chosen([piece], tuple(piece.shape), piece.k, taken) == form


@pytest.mark.parametrize(("n", "size"), [(64, 32), (256, 8)])
def test_the_shifted_form_is_not_taken_where_pixel_gramians_are_large(n, size, taken):
    piece = conv(n, 512, size)
    assert chosen([piece], tuple(piece.shape), n, taken) != "shifted"


def test_the_shifted_form_is_not_taken_for_strides(taken):
    piece = conv(64, 512, 4, stride=(2, 2))
    assert chosen([piece], tuple(piece.shape), 64, taken) != "shifted"


def test_many_large_rows_are_not_kept_by_the_loop(taken):
    # 256 rows of 512 x 512 x 9 take 2.4 GB.
    piece = conv(256, 512, 8)
    assert chosen([piece], tuple(piece.shape), 256, taken) == "taps"


def dense(n: int, positions: int, p: int, q: int) -> Outer:
    zero = torch.zeros(())
    return Outer(zero.expand(n, positions, p), zero.expand(n, positions, q))


def table(n: int, positions: int, p: int, q: int) -> Lookup:
    ids = torch.zeros((), dtype=torch.long).expand(n, positions)
    return Lookup(ids, torch.zeros(()).expand(n, positions, q), p)


@pytest.mark.parametrize("n", [16, 64, 128])
@pytest.mark.parametrize("width", [64, 512, 4096])
def test_one_position(n, width, taken):
    assert chosen([dense(n, 1, width, width)], (width, width), n, taken) == "ghost"


@pytest.mark.parametrize(("p", "q"), [(256, 256), (768, 256), (256, 1024)])
def test_many_positions_of_many_samples(p, q, taken):
    assert chosen([dense(64, 64, p, q)], (p, q), 64, taken) == "rows"


def test_few_positions_of_wide_layers(taken):
    assert chosen([dense(16, 4, 2048, 2048)], (2048, 2048), 16, taken) == "ghost"


def test_few_samples_with_many_positions_of_a_narrow_layer(taken):
    assert chosen([dense(8, 1024, 16, 16)], (16, 16), 8, taken) == "rows"


def test_a_tied_head_of_a_large_vocabulary(taken):
    tied = [dense(4, 8, 50_000, 768), table(4, 8, 50_000, 768)]
    assert chosen(tied, (50_000, 768), 4, taken) == "ghost"


class Largest(TorchDispatchMode):
    """Remembers the largest memory that a tensor is stored in."""

    nbytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.nbytes = max(self.nbytes, result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("n", [4, 32])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rate", [1e-3, 1.0, 1e3])
def test_a_large_vocabulary_is_never_materialised_as_a_whole(n, tied, rate, monkeypatch):
    # Whatever the machine, and whichever form it makes the cheapest.
    other = rates.Rates(TYPICAL.products * rate, TYPICAL.traffic, TYPICAL.call)
    monkeypatch.setattr(forms, "rates", lambda _: other)
    words, positions, q, workspace = 5_000, 8, 16, 100_000
    pieces: list[Piece] = [lookup(n, positions, words, q, torch.float32)]
    if tied:
        pieces.append(outer(n, positions, words, q, torch.float32))
    expected = gram_of_rows(torch.stack([rows_of(piece) for piece in pieces]).sum(0))
    with Largest() as largest:
        found, _ = forms.gram_of(pieces, torch.Size((words, q)), n, Products(workspace=workspace))
    assert error(found, expected) < 2e-6
    factors = max(t.nbytes for p in pieces for t in vars(p).values() if isinstance(t, Tensor))
    # Rows of all words are n * 5,000 * 16 numbers, those of the words that occur at most n * 64.
    assert largest.nbytes <= max(factors, 4 * n * q * (n * positions), 3 * workspace)
    assert largest.nbytes < 4 * n * words * q


@pytest.mark.parametrize("workspace", [10_000, 300_000])
def test_temporary_blocks_keep_to_the_workspace(workspace):
    products = Products(workspace=workspace)
    for piece, compute in [
        (outer(30, 20, 400, 80, torch.float32), forms._outer_rows_gram),
        (outer(30, 20, 400, 80, torch.float32), lambda p, w: forms._ghost(p, p, w)),
        (lookup(30, 20, 900, 80, torch.float32), lambda p, w: forms._ghost(p, p, w)),
    ]:
        whole = 4 * 30 * 400 * 80
        with Largest() as largest:
            compute(piece, products)
        narrowest = max(4 * 30 * forms._NARROW * 80, 8 * 20 * 30 * 20)
        factors = 4 * 30 * 20 * 400
        assert largest.nbytes <= max(factors, narrowest, workspace)
        assert largest.nbytes < whole
    products = Products(workspace=workspace)
    piece = convolution(30, 1, (32, 40), (5, 5), (3, 3), padding=1, dtype=torch.float32)
    with Largest() as largest:
        for rows in piece.taps(forms._channels(piece, products), products):
            assert rows.nbytes <= max(2 * workspace, 4 * 30 * 32)
    padded = 4 * 30 * 32 * 7 * 7
    assert largest.nbytes <= max(padded, 2 * workspace)


@pytest.mark.parametrize("factor", [1 / 1.9, 0.7, 1.0, 1.4, 1.9])
def test_nearly_typical_machines_have_exactly_the_typical_rates(factor, monkeypatch):
    times = iter(
        [
            384**3 / (TYPICAL.products * factor),
            3 * 4 * (1 << 20) / (TYPICAL.traffic * factor),
            TYPICAL.call * factor / 3,
        ]
    )
    monkeypatch.setattr(rates, "_seconds", lambda *_: next(times))
    assert rates.rates.__wrapped__("cpu") == TYPICAL


@pytest.mark.parametrize(("factor", "power"), [(2.1, 1), (7.9, 1), (8.1, 2), (0.4, -1), (0.06, -2)])
def test_other_machines_rates_are_powers_of_four_away(factor, power):
    assert rates._rounded(factor * 7.0, 7.0) == 7.0 * 4.0**power


def test_rates_are_measured_once():
    found = rates.rates("cpu")
    assert found is rates.rates("cpu")
    for name in ("products", "traffic", "call"):
        assert getattr(found, name) > 0
