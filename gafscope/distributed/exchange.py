"""Rows that every rank holds whole become shards of all ranks' rows.

A step of K ranks with m rows each: `share` sends every rank its shard of the own rows;
`Shards.partial_gramian` and `sum_over_ranks` give every rank the Gramian of all k = m * K rows;
every rank takes the same decision on it, combines its own shard (`Shards.combine`), and
`Shards.gather` hands the shards of the update round.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from gafscope.distributed.collectives import group_ranks, room_for, send_shards
from gafscope.distributed.layout import Layout
from gafscope.distributed.shards import Home, Shards
from gafscope.gradients.running import Gradient

_BITS = 8  # whole numbers up to 2 ** 8 are exact in every floating type, bfloat16 too


@final
class ShardExchange:
    """Exchanges the shards of rows.

    Args:
        parameters: The trainable parameters by name, the same on every rank.
        group: The process group, None for the whole job.
        dtype: Type in which rows and updates travel, None for the parameters' own.
            torch.bfloat16 halves the bytes; sums are taken in float32.

    Raises:
        UserError: If there is no process group, or it has one rank only.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        group: dist.ProcessGroup | None = None,
        dtype: torch.dtype | None = None,
    ):
        ranks, rank = group_ranks(group)
        self.layout = Layout.of(parameters, ranks, rank)
        self._dtype = dtype or functools.reduce(torch.promote_types, self.layout.types)
        self._device = next(iter(parameters.values())).device
        self._group = group
        self._rows = 0
        self._send = self._room = torch.empty(0)
        self._extra = -(-len(self.layout.shapes) // _BITS)

    def share(self, rows: Sequence[Gradient]) -> Shards:
        """Send every rank its shard of the own rows, and receive the own shard of all rows.

        Collective: every rank calls it with the same number of rows.

        Args:
            rows: The own m rows, an empty one where it is not finite. They are handed over: each
                is emptied once it is copied, so that it takes up no memory beside the shards.

        Returns:
            The own shard of m * K rows.
        """
        m = len(rows)
        if self._rows != m:
            total = m * (self.layout.numbers + self.layout.ranks * self._extra)
            self._send = torch.empty(total, dtype=self._dtype, device=self._device)
            self._room = room_for(self.layout, m, self._extra, self._send)
            self._rows = m
        self._pack(rows)
        received, work = send_shards(
            self._send, self.layout, m, self._extra, self._room, self._group
        )
        work.wait()
        width = self.layout.widths[self.layout.rank]
        used = _from_bits(received[:, width:], len(self.layout.shapes))
        home = Home(self.layout, self._room, self._group)
        names, ranks = list(self.layout.shapes), self.layout.ranks
        return Shards(received[:, :width], used, names, self.layout.own, ranks, home)

    def _pack(self, rows: Sequence[Gradient]) -> None:
        m, widths = len(rows), self.layout.widths
        blocks = [
            block.view(m, -1) for block in self._send.split([m * (w + self._extra) for w in widths])
        ]
        for i, gradient in enumerate(rows):
            bits = _to_bits(gradient, len(self.layout.shapes)).to(self._send)
            for block, width in zip(blocks, widths, strict=True):
                block[i, width:] = bits
                if not gradient:
                    block[i, :width] = torch.nan
            self._copy(gradient, [block[i] for block in blocks])
            gradient.clear()

    def _copy(self, gradient: Gradient, shards: Sequence[Tensor]) -> None:
        """Lay a row's parameters end to end, across the borders of its shards."""
        place = 0
        for j, size in enumerate(self.layout.sizes if gradient else ()):
            tensor, gradient[j] = gradient[j], None
            flat = None if tensor is None else tensor.detach().reshape(-1)
            for rank in range(self.layout.ranks):
                first, last = self.layout.bounds(rank)
                start, stop = max(place, first), min(place + size, last)
                if start < stop:
                    part = 0.0 if flat is None else flat[start - place : stop - place]
                    shards[rank][start - first : stop - first] = part
            place += size


def _to_bits(gradient: Gradient, parameters: int) -> Tensor:
    there = [part is not None for part in gradient] or [True] * parameters
    there += [False] * (-len(there) % _BITS)
    powers = torch.tensor([1 << bit for bit in range(_BITS)])
    return (torch.tensor(there).view(-1, _BITS) * powers).sum(1)


def _from_bits(bits: Tensor, parameters: int) -> Tensor:
    powers = torch.tensor([1 << bit for bit in range(_BITS)])
    there = (bits.cpu().long()[:, :, None] & powers) > 0
    return there.flatten(1)[:, :parameters]
