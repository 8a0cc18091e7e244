"""Rows and Gramians of the ghost engine's pieces, written out in float64 with loops."""

from __future__ import annotations

import itertools
from math import prod

import torch
from torch import Tensor

from gafscope.gradients.ghost.convolution import Convolution, Geometry
from gafscope.gradients.ghost.pieces import Lookup, Outer, Piece, Rows


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def outer(k: int, t: int, p: int, q: int, dtype: torch.dtype = torch.float64) -> Outer:
    return Outer(normal(k, t, p, seed=1, dtype=dtype), normal(k, t, q, seed=2, dtype=dtype))


def lookup(k: int, t: int, p: int, q: int, dtype: torch.dtype = torch.float64) -> Lookup:
    ids = torch.randint(p, (k, t), generator=torch.Generator().manual_seed(3))
    return Lookup(ids, normal(k, t, q, seed=4, dtype=dtype), p)


def convolution(
    k: int,
    u: int,
    channels: tuple[int, int],
    pixels: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    transposed: bool = False,
    output_padding: int = 0,
    groups: int = 1,
    dtype: torch.dtype = torch.float64,
) -> Convolution:
    """Random factors of a convolution from `channels[0]` to `channels[1]` channels."""
    d = len(pixels)
    C, D = channels
    if transposed:
        made = [
            (size - 1) * stride - 2 * padding + dilation * (extent - 1) + output_padding + 1
            for size, extent in zip(pixels, kernel, strict=True)
        ]
        shape = torch.Size((C, D // groups, *kernel))
    else:
        made = [
            (size + 2 * padding - dilation * (extent - 1) - 1) // stride + 1
            for size, extent in zip(pixels, kernel, strict=True)
        ]
        shape = torch.Size((D, C // groups, *kernel))
    geometry = Geometry(
        kernel=kernel,
        stride=(stride,) * d,
        padding=(padding,) * d,
        dilation=(dilation,) * d,
        transposed=transposed,
        output_padding=(output_padding,) * d,
        groups=groups,
    )
    inputs = normal(k * u, C, *pixels, seed=5, dtype=dtype)
    gradient = normal(k * u, D, *made, seed=6, dtype=dtype)
    return Convolution(inputs, gradient, shape, geometry, k)


def rows_of(piece: Piece) -> Tensor:
    """(k, numel), in float64."""
    if isinstance(piece, Rows):
        return piece.rows.double().flatten(1)
    if isinstance(piece, Outer):
        left, right = piece.left.double(), piece.right.double()
        return torch.einsum("ktp,ktq->kpq", left, right).flatten(1)
    if isinstance(piece, Lookup):
        k, t, q = piece.right.shape
        rows = torch.zeros(k, piece.width, q, dtype=torch.float64)
        for i, j in itertools.product(range(k), range(t)):
            rows[i, piece.ids[i, j]] += piece.right[i, j].double()
        return rows.flatten(1)
    assert isinstance(piece, Convolution)
    return _convolution_rows(piece)


def gram_of_rows(rows: Tensor) -> Tensor:
    return rows @ rows.T


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, over the rows' norms."""
    assert found.shape == expected.shape
    assert found.dtype == torch.float64
    norms = expected.diagonal().sqrt()
    return float(((found - expected).abs() / (norms[:, None] * norms)).max())


def _convolution_rows(piece: Convolution) -> Tensor:
    """Sum over the pixels that an entry of the kernel joins, entry by entry and group by group."""
    geometry, groups = piece.geometry, piece.geometry.groups
    # A transposed convolution is an ordinary one from its output's pixels to its input's.
    x, b = piece.inputs.double(), piece.gradient.double()
    wide, narrow = (b, x) if geometry.transposed else (x, b)
    pads = [pad for p in reversed(geometry.padding) for pad in (p, p)]
    wide = torch.nn.functional.pad(wide, pads)
    n, u, pixels = len(x), len(x) // piece.k, narrow.shape[2:]
    wide, narrow = (each.unflatten(1, (groups, -1)) for each in (wide, narrow))
    samples = torch.zeros(n, prod(piece.shape[:2]), *geometry.kernel, dtype=torch.float64)
    for offset in itertools.product(*map(range, geometry.kernel)):
        seen = wide
        for i, size in enumerate(pixels):
            first = offset[i] * geometry.dilation[i]
            index = first + geometry.stride[i] * torch.arange(size)
            seen = seen.index_select(3 + i, index)
        samples[(..., *offset)] = torch.einsum(
            "ngdx,ngcx->ngdc", narrow.flatten(3), seen.flatten(3)
        ).reshape(n, -1)
    return samples.view(piece.k, u, -1).sum(1)
