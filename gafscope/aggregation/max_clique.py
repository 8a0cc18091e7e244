"""The largest set of rows that all agree with each other: exact search, and a greedy stand-in.

Sets of rows are the bits of an integer; `adjacent[i]` holds the rows that agree with row i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

# Sums of distances closer than this are equal: their last bits depend on the order of adding.
_EQUAL = 1e-12


def largest_clique(adjacent: Sequence[int], distance: Sequence[Sequence[float]]) -> list[int]:
    """Find the largest clique exactly; of several the one with the smallest sum of distances.

    Its size comes from branch and bound with a colouring bound (E. Tomita and T. Seki, 2003, "An
    efficient branch-and-bound algorithm for finding a maximum clique"). A second search then
    visits cliques in the order of their indices and leaves out what cannot reach that size or be
    tighter than the best so far. The time is exponential in k at worst; for k = 32 it is a matter
    of milliseconds on the graphs that gradients make.

    Args:
        adjacent: One bit set a row, symmetric, without the row itself.
        distance: (k, k), symmetric and not negative.

    Returns:
        The members in ascending order; the first in order among equals.

    Example:
        >>> largest_clique([0b010, 0b101, 0b010], [[0, 3, 9], [3, 0, 2], [9, 2, 0]])
        [1, 2]
    """
    every = (1 << len(adjacent)) - 1
    return _tightest(adjacent, distance, _clique_number(adjacent, every), every)


def peeled_clique(agree_kk: Bool[Tensor, "k k"], distance_kk: Float64[Tensor, "k k"]) -> list[int]:
    """Find a large clique greedily, by smallest-degree-last peeling.

    Rows are dropped, each time the one that agrees with the fewest left (of several the one with
    the largest sum of distances to those left, then the last), until all that are left agree.
    Dropped rows that agree with all of these come back, the latest dropped first. No row can then
    be added, but a larger set may exist elsewhere.

    Args:
        agree_kk: (k, k), symmetric; the diagonal is not looked at.
        distance_kk: (k, k), symmetric, finite.

    Returns:
        The members in ascending order; in O(k^2) additions.
    """
    agree = agree_kk.clone().fill_diagonal_(False).double()
    left = torch.ones(len(agree), dtype=torch.bool)
    degrees, sums = agree.sum(0), distance_kk.sum(0)
    dropped: list[int] = []
    while int((degrees[left] < left.sum() - 1).sum()):
        fewest = left & (degrees == degrees[left].min())
        farthest = fewest & (sums >= sums[fewest].max() - _EQUAL)
        row = int(farthest.nonzero()[-1])
        left[row] = False
        degrees, sums = degrees - agree[row], sums - distance_kk[row]
        dropped.append(row)
    for row in reversed(dropped):
        left[row] = bool((agree[row][left] > 0).all())
    return left.nonzero().flatten().tolist()


def _clique_number(adjacent: Sequence[int], every: int) -> int:
    best = 0

    def expand(size: int, candidates: int) -> None:
        nonlocal best
        order = [
            (row, colour)
            for colour, members in enumerate(_colours(adjacent, candidates), 1)
            for row in _bits(members)
        ]
        for row, colour in reversed(order):
            if size + colour <= best:
                return
            inner = candidates & adjacent[row]
            if inner:
                expand(size + 1, inner)
            else:
                best = max(best, size + 1)
            candidates &= ~(1 << row)

    expand(0, every)
    return best


def _tightest(
    adjacent: Sequence[int], distance: Sequence[Sequence[float]], size: int, every: int
) -> list[int]:
    best: list[int] = []
    lowest = float("inf")
    shortest = min(
        (distance[i][j] for i, bits in enumerate(adjacent) for j in _bits(bits)), default=0.0
    )

    def expand(members: list[int], total: float, added: list[float], candidates: int) -> None:
        """Extend a clique; `added[v]` is what row v would add to its sum of distances."""
        nonlocal best, lowest
        missing = size - len(members)
        if not missing:
            best, lowest = members, total
            return
        # At most one row of each colour can join: the cheapest of each bounds what it costs.
        classes = list(_colours(adjacent, candidates))
        if len(classes) < missing:
            return
        cheapest = sorted(min(added[row] for row in _bits(bits)) for bits in classes)
        bound = total + sum(cheapest[:missing]) + shortest * missing * (missing - 1) / 2
        if bound >= lowest - _EQUAL:
            return
        for row in _bits(candidates):
            candidates &= ~(1 << row)
            if total + added[row] < lowest - _EQUAL:
                more = [a + d for a, d in zip(added, distance[row], strict=True)]
                inner = candidates & adjacent[row]
                expand([*members, row], total + added[row], more, inner)

    expand([], 0.0, [0.0] * len(adjacent), every)
    return best


def _colours(adjacent: Sequence[int], candidates: int) -> Iterator[int]:
    """Split rows into classes without agreeing pairs, first come first served."""
    while candidates:
        free, members = candidates, 0
        while free:
            lowest = free & -free
            members |= lowest
            free &= ~lowest & ~adjacent[lowest.bit_length() - 1]
        candidates &= ~members
        yield members


def _bits(rows: int) -> Iterator[int]:
    while rows:
        lowest = rows & -rows
        yield lowest.bit_length() - 1
        rows ^= lowest
