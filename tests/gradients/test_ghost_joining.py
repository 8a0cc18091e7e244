"""Passes of one row each, joined: the same rows as one pass of all of them."""

from __future__ import annotations

import pytest
import torch

from gafscope.gradients.ghost.convolution import Convolution, Geometry
from gafscope.gradients.ghost.joining import join, join_pieces
from gafscope.gradients.ghost.pieces import Lookup, Outer, Rows

LIKE = torch.zeros(5, 4, dtype=torch.float64)
KERNEL = torch.zeros(5, 4, 3, 3, dtype=torch.float64)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def rows(*, positions=0):
    return Rows(normal(1, 5, 4))


def outer(*, positions=6):
    return Outer(normal(1, positions, 5), normal(1, positions, 4))


def lookup(*, positions=6):
    return Lookup(torch.randint(5, (1, positions)), normal(1, positions, 4), 5)


def convolution(*, positions=2, pixels=6, groups=1):
    shape = torch.Size((5, 4 // groups, 3, 3))
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), groups)
    inputs, gradient = normal(positions, 4, pixels, pixels), normal(positions, 5, pixels, pixels)
    return Convolution(inputs, gradient, shape, geometry, 1)


def values(pieces, like):
    """Give all rows, (k, numel), by the slow way."""
    total = sum(piece.slab(0, like.shape[0]).flatten(1) for piece in pieces)
    assert isinstance(total, torch.Tensor)
    return total


@pytest.mark.parametrize("make", [rows, outer, lookup, convolution])
def test_factors_are_joined_as_factors(make):
    torch.manual_seed(0)
    pieces = [make() for _ in range(3)]
    like = KERNEL if make is convolution else LIKE
    (joined,) = join([[piece] for piece in pieces], like)
    assert type(joined) is type(pieces[0])
    assert joined.nbytes == sum(piece.nbytes for piece in pieces)
    expected = torch.cat([values([piece], like) for piece in pieces])
    torch.testing.assert_close(values([joined], like), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [outer, lookup, convolution])
def test_microbatches_of_other_sizes_are_joined_as_rows(make):
    torch.manual_seed(0)
    pieces = [make(), make(positions=1)]
    like = KERNEL if make is convolution else LIKE
    (joined,) = join([[piece] for piece in pieces], like)
    assert isinstance(joined, Rows)
    expected = torch.cat([values([piece], like) for piece in pieces])
    torch.testing.assert_close(values([joined], like), expected, rtol=1e-12, atol=1e-12)


def test_several_uses_and_a_pass_that_reached_none_of_them():
    torch.manual_seed(0)
    passes = [[outer(), lookup()], [], [lookup(), outer()], [outer()]]
    (joined,) = join(passes, LIKE)
    right = torch.stack([values(p, LIKE)[0] if p else torch.zeros(20).double() for p in passes])
    torch.testing.assert_close(values([joined], LIKE), right, rtol=1e-12, atol=1e-12)
    two = join([passes[0], [outer(), lookup()]], LIKE)
    assert [type(piece) for piece in two] == [Outer, Lookup]


def test_what_differs_is_not_joined_in_factors():
    assert join_pieces([outer(), lookup()]) is None
    assert join_pieces([lookup(), Lookup(lookup().ids, normal(1, 6, 4), 6)]) is None
    assert join_pieces([convolution(), convolution(pixels=5)]) is None
    # One sample in one row is not two in two.
    two = Convolution(
        normal(2, 4, 6, 6), normal(2, 5, 6, 6), KERNEL.shape, convolution().geometry, 2
    )
    assert join_pieces([convolution(), two]) is None


def test_half_precision_rows_are_added_up_in_float32():
    torch.manual_seed(0)
    pieces = [outer(positions=n).to(torch.bfloat16) for n in (500, 3)]
    (joined,) = join([[piece] for piece in pieces], LIKE.bfloat16())
    expected = torch.cat([values([piece.to(torch.float64)], LIKE) for piece in pieces])
    torch.testing.assert_close(values([joined], LIKE).double(), expected, rtol=1e-5, atol=1e-5)


def test_scalars():
    (joined,) = join([[Rows(torch.tensor([2.0]))], []], torch.tensor(0.0))
    assert joined.slab(0, 1).flatten().tolist() == [2.0, 0.0]
