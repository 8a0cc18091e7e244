"""The Gramian of one parameter's rows, in the cheapest of its exact forms.

Shape legend: k rows, T positions of a row, (p, q) a matrix parameter, n samples.

- materialised: compute the rows, as much of them at a time as the workspace holds, and multiply.
- ghost: `<row_i, row_j> = sum_ts <left_it, left_js> <right_it, right_js>`; the rows never exist.
- shifted: the ghost form of a convolution, without unfolding its input.
- looped: a convolution's weight gradient, sample by sample, all kept.
- unfolded: a convolution as a dense layer on every pixel's neighbourhood.
- taps: a convolution's rows, entry of the kernel by entry.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from gafscope.gradients.ghost.convolution import Convolution, shifted_gram
from gafscope.gradients.ghost.pieces import Lookup, Outer, Piece, Rows
from gafscope.gradients.ghost.products import Products
from gafscope.gradients.ghost.rates import Rates, rates

# Narrower blocks of rows use the processor badly.
_NARROW = 64
# Unfolded inputs stay in the cache.
_UNFOLDED = 4 << 20


def gram_of(
    pieces: Sequence[Piece], shape: torch.Size, k: int, products: Products
) -> tuple[Tensor, list[Piece]]:
    """Compute a parameter's Gramian.

    Args:
        pieces: What the parameter's calls contribute.
        shape: The parameter's shape.
        k: Number of rows.
        products: How to multiply.

    Returns:
        (k, k) float64, and the pieces, replaced by the rows where those had to be computed
        whole and take less memory.
    """
    widest = functools.reduce(torch.promote_types, (piece.dtype for piece in pieces))
    dtype = products.sums(widest)
    pieces = [piece if piece.dtype == dtype else piece.to(dtype) for piece in pieces]
    if all(isinstance(piece, Rows) for piece in pieces):
        rows = sum_of_rows(pieces, shape)
        return products.gram(rows), [Rows(rows.view(k, *(shape or (1,))))]
    if len(pieces) == 1 and isinstance(pieces[0], Convolution):
        return _convolution_gram(pieces[0], products)
    if all(isinstance(piece, Outer | Lookup) for piece in pieces):
        return _outer_gram(pieces, products), [*pieces]
    return _materialised(pieces, shape, k, products), [*pieces]


def sum_of_rows(pieces: Sequence[Piece], shape: torch.Size) -> Tensor:
    """Compute all rows of a parameter.

    Args:
        pieces: Its pieces.
        shape: Its shape.

    Returns:
        (k, numel).
    """
    first = shape[0] if shape else 1
    total = pieces[0].slab(0, first).flatten(1)
    for piece in pieces[1:]:
        total = total + piece.slab(0, first).flatten(1)
    return total


def _materialised(pieces: Sequence[Piece], shape: torch.Size, k: int, products: Products) -> Tensor:
    """Multiply rows of which some numbers are computed at a time."""
    first, rest = (shape[0], prod(shape[1:])) if shape else (1, 1)
    step = max(1, products.workspace // (4 * k * rest))
    if any(isinstance(piece, Convolution) and not piece.geometry.plain for piece in pieces):
        step = first
    total = None
    for start in range(0, first, step):
        stop = min(start + step, first)
        slab = pieces[0].slab(start, stop).flatten(1)
        for piece in pieces[1:]:
            slab = slab + piece.slab(start, stop).flatten(1)
        part = products.gram(slab)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _convolution_gram(piece: Convolution, products: Products) -> tuple[Tensor, list[Piece]]:
    """Take the form that should be fastest."""
    costs = _convolution_costs(piece, products)
    form = min(costs, key=lambda name: costs[name])
    if form == "shifted":
        return shifted_gram(piece, products), [piece]
    if form == "unfolded":
        return products.gram(piece.unfolded(min(_UNFOLDED, products.held), products)), [piece]
    if form == "looped":
        rows = Rows(piece.slab(0, piece.shape[0]))
        kept: list[Piece] = [rows if rows.nbytes < piece.nbytes else piece]
        return products.gram(rows.rows.flatten(1)), kept
    total = torch.zeros(piece.k, piece.k, dtype=torch.float64, device=piece.inputs.device)
    for rows in piece.taps(_channels(piece, products), products):
        total += products.gram(rows)
    return total, [piece]


def _convolution_costs(piece: Convolution, products: Products) -> dict[str, float]:
    """Estimate the seconds of each form that is exact and fits into memory."""
    rate = rates(piece.inputs.device.type)
    n, k, numel, geometry = len(piece.inputs), piece.k, prod(piece.shape), piece.geometry
    pixels, size = prod(piece.gradient.shape[2:]), piece.inputs.element_size()
    multiply = n * pixels * numel / geometry.groups / rate.products
    product = _product_seconds(k, numel, rate)
    # Few channels, and small maps one sample at a time, use the processor badly.
    narrow = 1 + 8 / piece.shape[1]
    small = 1 + 36 * k / (n * pixels)
    costs: dict[str, float] = {}
    if k * numel * size <= max(products.held, piece.nbytes) or not geometry.plain:
        costs["looped"] = 3 * k * rate.call + multiply * small * narrow + product
        if geometry.plain:
            copied = 3 * n * pixels * numel // piece.shape[0] * size / rate.traffic
            costs["unfolded"] = 1.3 * multiply + product + copied
    if geometry.plain:
        calls = len(geometry.offsets) * -(-piece.shape[0] // _channels(piece, products))
        costs["taps"] = 5 * calls * rate.call + 1.6 * multiply * narrow + product
        pairs = 0.65 * (n * prod(piece.inputs.shape[2:])) ** 2
        if set(geometry.stride) == {1} and 8 * pairs <= 3 * products.held:
            # Large pixel Gramians leave the cache at every shift.
            moved = 24 * len(geometry.offsets) * pairs / rate.traffic
            costs["shifted"] = pairs * sum(piece.shape[:2]) / rate.products + moved
    return costs


def _channels(piece: Convolution, products: Products) -> int:
    per_channel = piece.k * piece.shape[1] * piece.inputs.element_size()
    return max(1, min(piece.shape[0], 2 * products.workspace // per_channel))


def _product_seconds(k: int, length: int, rate: Rates) -> float:
    """Estimate `rows @ rows.T` of (k, length); few rows use the processor badly."""
    return 0.7 * k * (k + 10) * length / rate.products + 4 * k * length / rate.traffic


def _outer_gram(pieces: Sequence[Piece], products: Products) -> Tensor:
    lookups = [piece for piece in pieces if isinstance(piece, Lookup)]
    outers = [piece for piece in pieces if isinstance(piece, Outer)]
    lookup = _joined_lookup(lookups, compact=not outers) if lookups else None
    outer = _joined_outer(outers) if outers else None
    both = [piece for piece in (outer, lookup) if piece is not None]
    k = len(both[0].right)
    width = max(piece.width for piece in both)
    q = both[0].right.shape[2]
    device = both[0].right.device
    rate = rates(device.type)
    positions = sum(piece.right.shape[1] for piece in both)
    dense = 0 if outer is None else outer.right.shape[1]
    pairs = 0.65 * (k * positions) ** 2
    ghost = pairs * (q + (width if outer else 1)) / rate.products + 12 * pairs / rate.traffic
    materialised = (
        1.25 * k * dense * width * q / rate.products
        + (12 * k * positions * q + 8 * k * width * q) / rate.traffic
        + _product_seconds(k, width * q, rate)
    )
    if ghost > materialised:
        if lookup is None and outer is not None:
            return _outer_rows_gram(outer, products)
        return _materialised(both, torch.Size((width, q)), k, products)
    total = sum(_ghost(piece, piece, products) for piece in both)
    if len(both) == 2:
        cross = _ghost(both[0], both[1], products)
        total = total + cross + cross.T
    assert isinstance(total, Tensor)
    return total


def _outer_rows_gram(outer: Outer, products: Products) -> Tensor:
    """Compute rows some columns at a time, always in the same memory, and multiply them."""
    left, right = outer.left, outer.right
    if left.shape[2] < right.shape[2]:
        left, right = right, left
    k, _, q = right.shape
    column = right.element_size() * k * q
    step = max(products.workspace // column, min(_NARROW, products.held // column), 1)
    step = min(step, left.shape[2])
    total = torch.zeros(k, k, dtype=torch.float64, device=right.device)
    for start in range(0, left.shape[2], step):
        part = left[:, :, start : start + step].transpose(1, 2)
        rows = products.scratch((k, part.shape[1], q), right)
        torch.bmm(part, right, out=rows)
        total += products.gram(rows.flatten(1))
    return total


def _joined_outer(outers: list[Outer]) -> Outer:
    if len(outers) == 1:
        return outers[0]
    return Outer(
        torch.cat([piece.left for piece in outers], 1),
        torch.cat([piece.right for piece in outers], 1),
    )


def _joined_lookup(lookups: list[Lookup], compact: bool) -> Lookup:
    """Put the lookups side by side; compact, only indices that occur are counted."""
    ids = torch.cat([piece.ids for piece in lookups], 1)
    right = torch.cat([piece.right for piece in lookups], 1)
    if not compact:
        return Lookup(ids, right, lookups[0].width)
    used, ids = torch.unique(ids, return_inverse=True)
    return Lookup(ids, right, len(used))


def _ghost(a: Outer | Lookup, b: Outer | Lookup, products: Products) -> Tensor:
    """Multiply all rows of a with all of b, both in factors, strip by strip."""
    k, t, _ = a.right.shape
    s = b.right.shape[1]
    step = max(1, min(k, products.workspace // (8 * t * k * s)))
    total = torch.zeros(k, k, dtype=torch.float64, device=a.right.device)
    right = products.prepared(b.right).flatten(0, 1)
    for i in range(0, k, step):
        rows = slice(i, i + step)
        first = i if a is b else 0
        others = right[first * s :]
        terms = products.prepared(a.right[rows]).flatten(0, 1) @ others.T
        left = _left_products(a, b, rows, first, products)
        terms = terms.float() * left.float() if terms.dtype == torch.bfloat16 else terms * left
        block = terms.view(-1, t, k - first, s).sum((1, 3))
        total[rows, first:] += block
        if a is b:
            total[i + step :, rows] += block[:, step:].T
    return total


def _left_products(
    a: Outer | Lookup, b: Outer | Lookup, rows: slice, first: int, products: Products
) -> Tensor:
    """Multiply the left factors of some rows of a with those of b from `first` on."""
    if isinstance(a, Outer) and isinstance(b, Outer):
        left = products.prepared(a.left[rows]).flatten(0, 1)
        return left @ products.prepared(b.left[first:]).flatten(0, 1).T
    if isinstance(a, Lookup) and isinstance(b, Lookup):
        same = a.ids[rows].flatten()[:, None] == b.ids[first:].flatten()
        return same.to(a.right.dtype)
    assert isinstance(a, Outer) and isinstance(b, Lookup)
    return products.prepared(a.left[rows]).flatten(0, 1)[:, b.ids[first:].flatten()]
