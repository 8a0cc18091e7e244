"""How a vector of parameters is cut into one shard a rank, at no padding.

Shape legend: P numbers in a row, K ranks, S = ceil(P / K) numbers in a shard (the last shards may
hold fewer, down to none).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Layout:
    """Parameters laid end to end, and cut into K shards.

    Attributes:
        shapes: Parameter name -> shape, in the order in which they are laid.
        types: Number type of each parameter.
        ranks: K.
        rank: The rank whose shard is meant by "own".
    """

    shapes: Mapping[str, torch.Size]
    types: Sequence[torch.dtype]
    ranks: int
    rank: int

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of each parameter."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @cached_property
    def numbers(self) -> int:
        """P."""
        return sum(self.sizes)

    @property
    def width(self) -> int:
        """S, the numbers of the first shard."""
        return -(-self.numbers // self.ranks)

    def bounds(self, rank: int) -> tuple[int, int]:
        """Give the first number of a rank's shard and the one after its last."""
        return min(rank * self.width, self.numbers), min((rank + 1) * self.width, self.numbers)

    @cached_property
    def widths(self) -> list[int]:
        """Numbers of each rank's shard."""
        return [stop - start for start, stop in map(self.bounds, range(self.ranks))]

    @cached_property
    def own(self) -> dict[str, tuple[int, int]]:
        """Give the parameters that the own shard holds something of, name -> (start, stop).

        Both count from the shard's first number.
        """
        first, last = self.bounds(self.rank)
        pieces, place = {}, 0
        for name, size in zip(self.shapes, self.sizes, strict=True):
            start, stop = max(place, first), min(place + size, last)
            if start < stop:
                pieces[name] = (start - first, stop - first)
            place += size
        return pieces

    def unpack(self, flat_n: Tensor) -> list[Tensor]:
        """Split a whole vector into the parameters' shapes and types; views where these allow.

        Args:
            flat_n: P numbers.
        """
        parts = zip(flat_n.split(self.sizes), self.shapes.values(), self.types, strict=True)
        return [part.view(shape).to(kind) for part, shape, kind in parts]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], ranks: int, rank: int) -> Layout:
        """Lay parameters out in their order.

        Args:
            parameters: By name.
            ranks: K.
            rank: The own rank.
        """
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        return cls(shapes, [parameter.dtype for parameter in parameters.values()], ranks, rank)
