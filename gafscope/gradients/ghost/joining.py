"""Contributions of several passes, joined to those of one pass of as many rows.

Shape legend: k rows, one or more from each pass.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from gafscope.gradients.ghost.convolution import Convolution
from gafscope.gradients.ghost.forms import sum_of_rows
from gafscope.gradients.ghost.pieces import Lookup, Outer, Piece, Rows
from gafscope.gradients.ghost.products import Products


def join(passes: Sequence[Sequence[Piece]], like: Tensor) -> list[Piece]:
    """Put the rows of several passes below each other.

    Factors of one shape are joined as they are. Passes that differ (microbatches of other sizes
    or lengths, a call that a pass did not reach) are joined as whole rows, which is as exact.

    Args:
        passes: What each pass, of one row, contributes to a parameter or derived tensor.
        like: That parameter or tensor.

    Returns:
        The pieces of all rows, in the order of the passes.
    """
    if len({len(pieces) for pieces in passes}) == 1:
        joined = [join_pieces(of_one_call) for of_one_call in zip(*passes, strict=True)]
        known = [piece for piece in joined if piece is not None]
        if len(known) == len(joined):
            return known
    return [Rows(torch.cat([row_of(pieces, like) for pieces in passes]))]


def join_pieces(pieces: Sequence[Piece]) -> Piece | None:
    """Put the rows of several pieces below each other, in factors.

    Args:
        pieces: At least one.

    Returns:
        The piece of all rows; None where the kinds, or the factors' shapes of a row, differ.
    """
    if len({_kind(piece) for piece in pieces}) > 1:
        return None
    if rows := [piece for piece in pieces if isinstance(piece, Rows)]:
        return Rows(torch.cat([piece.rows for piece in rows]))
    if outers := [piece for piece in pieces if isinstance(piece, Outer)]:
        left = torch.cat([piece.left for piece in outers])
        return Outer(left, torch.cat([piece.right for piece in outers]))
    if lookups := [piece for piece in pieces if isinstance(piece, Lookup)]:
        right = torch.cat([piece.right for piece in lookups])
        return Lookup(torch.cat([piece.ids for piece in lookups]), right, lookups[0].width)
    convolutions = [piece for piece in pieces if isinstance(piece, Convolution)]
    assert len(convolutions) == len(pieces)
    inputs = torch.cat([piece.inputs for piece in convolutions])
    gradient = torch.cat([piece.gradient for piece in convolutions])
    k, first = sum(piece.k for piece in convolutions), convolutions[0]
    return Convolution(inputs, gradient, first.shape, first.geometry, k)


def row_of(pieces: Sequence[Piece], like: Tensor) -> Tensor:
    """Compute the whole row of a pass of one row.

    Args:
        pieces: What the pass contributes; none where it did not reach the tensor.
        like: The parameter or derived tensor.

    Returns:
        (1, *like.shape), at least in float32; (1, 1) for a scalar.
    """
    shape = like.shape or torch.Size((1,))
    if not pieces:
        return torch.zeros(1, *shape, dtype=Products().sums(like.dtype), device=like.device)
    wide = [piece.to(Products().sums(piece.dtype)) for piece in pieces]
    return sum_of_rows(wide, like.shape).view(1, *shape)


def _kind(piece: Piece) -> Hashable:
    """Give everything that pieces must share to be joined in factors."""
    if isinstance(piece, Rows):
        return Rows, piece.rows.shape[1:]
    if isinstance(piece, Outer):
        return Outer, piece.left.shape[1:], piece.right.shape[1:]
    if isinstance(piece, Lookup):
        return Lookup, piece.ids.shape[1:], piece.right.shape[1:], piece.width
    assert isinstance(piece, Convolution)
    samples, maps = len(piece.inputs) // piece.k, piece.gradient.shape[1:]
    return Convolution, samples, piece.inputs.shape[1:], maps, piece.shape, piece.geometry
