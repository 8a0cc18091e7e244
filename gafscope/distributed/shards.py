"""The own shard of every row, and what can be made of it.

Shape legend: k rows in all, s numbers in the own shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from gafscope import geometry
from gafscope.aggregation import Decision, Fold
from gafscope.distributed.collectives import gather_shards
from gafscope.distributed.layout import Layout
from gafscope.gradients import GradientRows
from gafscope.gradients.running import Gradient, RunningVector

_HALF = (torch.bfloat16, torch.float16)


@final
@dataclass(frozen=True, eq=False)
class Home:
    """What the shards of an update are collected with.

    Attributes:
        layout: Where the shards lie in the whole.
        room: Memory of at least K * S numbers of the rows' type: what the rows lie in.
        group: The process group.
    """

    layout: Layout
    room: Tensor
    group: dist.ProcessGroup | None


@final
class Shards:
    """The own shard of k rows, ordered by rank and then by the rank's own order.

    Args:
        rows_ks: (k, s), as they came; those of a row that is not finite hold NaN.
        used: (k, number of parameters), whether a row has a gradient for a parameter.
        names: Names of all parameters.
        own: Name -> (start, stop) within the shard, for those that it holds something of.
        ranks: Number K of ranks.
        home: What the whole update is collected with; None where the shards stay apart.
    """

    def __init__(
        self,
        rows_ks: Float[Tensor, "k s"],
        used: Bool[Tensor, "k parameters"],
        names: Sequence[str],
        own: Mapping[str, tuple[int, int]],
        ranks: int,
        home: Home | None = None,
    ):
        self.rows_ks = rows_ks
        self.used = used
        self.own = own
        self.names, self._ranks, self._home = names, ranks, home

    @property
    def k(self) -> int:
        """Number of rows, m * K."""
        return len(self.used)

    @property
    def numbers(self) -> int:
        """Numbers in the own shard, s."""
        return self.rows_ks.shape[1]

    def averaged(self, group_size: int) -> Shards:
        """Average the rows of neighbouring ranks, one with one, two with two and so on.

        Args:
            group_size: Ranks whose rows become one; it divides the number of ranks.

        Returns:
            k / group_size rows. A row that is not finite makes its average so.
        """
        if group_size == 1:
            return self
        groups, own = self._ranks // group_size, self.k // self._ranks
        rows = self.rows_ks.reshape(groups, group_size, own, -1).mean(1).flatten(0, 1)
        used = self.used.view(groups, group_size, own, -1).any(1).flatten(0, 1)
        return Shards(rows, used, self.names, self.own, groups, self._home)

    def partial_gramian(
        self, layers: bool
    ) -> tuple[Float64[Tensor, "k k"], dict[str, Float64[Tensor, "k k"]]]:
        """Multiply the own shard's rows; the sum over the ranks is the rows' Gramian.

        Args:
            layers: Give the matrix of each parameter as well.

        Returns:
            `(matrix, layers)`, float64 on the CPU, NaN where a row is not finite. With layers
            there is one matrix for every parameter, zeros where it is none of the own shard.
        """
        if not layers:
            return self._multiply(0, self.numbers), {}
        empty = torch.zeros(self.k, self.k, dtype=torch.float64)
        matrices = {
            name: self._multiply(*self.own[name]) if name in self.own else empty
            for name in self.names
        }
        return sum(matrices.values(), start=empty), matrices

    def rows(self) -> GradientRows:
        """Give the own shard of all rows, split where one parameter ends and the next begins.

        Returns:
            Name -> (k, numbers) for the parameters that the shard holds something of.
        """
        named = {name: self.rows_ks[:, a:b] for name, (a, b) in self.own.items()}
        return GradientRows(named, engine="loop")

    def combine(
        self, decision: Decision, fold: Fold | None = None, order: Sequence[int] | None = None
    ) -> Tensor:
        """Give the own shard of the update, `sum_i w_i g_i`.

        The operations on each number are those of the one-process trainer, in its order, so that
        the update is its update to the last bit.

        Args:
            decision: It steps.
            fold: Of a sequential rule: how it folds.
            order: In which the rows were visited; None for their own.

        Returns:
            (s,), of the rows' type, float32 for half-precision ones.
        """
        accepted = decision.accepted.tolist()
        running = RunningVector()
        for i in range(self.k) if order is None else order:
            if not accepted[i]:
                continue
            # The first one is taken over and changed; the rows may serve a second time.
            row = self._wide(i) if running.tensors else self._wide(i, copy=True)
            if fold is None:
                running.fold([row], 1.0, float(decision.weights[i]))
            else:
                running.fold([row], fold.keep, fold.add if running.tensors else 1.0)
        if fold is not None and fold.divide:
            running.divide(sum(accepted))
        (update,) = running.tensors
        assert update is not None
        return update

    def empty_update(self) -> Float[Tensor, " s"]:
        """Give zeros for the own shard of an update."""
        return torch.zeros_like(self.rows_ks[0])

    def start_gather(self, update_s: Float[Tensor, " s"]) -> tuple[Tensor, list[Any]]:
        """Start to collect the whole update, in the memory of the rows, which are gone then.

        Args:
            update_s: The own shard of it.

        Returns:
            `(update, works)`: (P,), of the rows' type, there once each `work.wait()` has returned.
        """
        assert self._home is not None, "the shards stay apart"
        room = self._home.room
        return gather_shards(update_s.to(room.dtype), self._home.layout, room, self._home.group)

    def gather(self, update_s: Float[Tensor, " s"], accepted: Bool[Tensor, " k"]) -> Gradient:
        """Collect the whole update, in the memory of the rows, which are gone then.

        The next exchange writes there again.

        Args:
            update_s: The own shard of it.
            accepted: The accepted rows.

        Returns:
            One tensor a parameter, of its type; None where no accepted row uses it.
        """
        flat, works = self.start_gather(update_s)
        for work in works:
            work.wait()
        assert self._home is not None, "the shards stay apart"
        used = self.used[accepted].any(0).tolist()
        return [
            tensor if there else None
            for tensor, there in zip(self._home.layout.unpack(flat), used, strict=True)
        ]

    def _multiply(self, start: int, stop: int) -> Float64[Tensor, "k k"]:
        if start == stop:
            return torch.zeros(self.k, self.k, dtype=torch.float64)
        return geometry.held_gramian([[row[start:stop]] for row in self.rows_ks])

    def _wide(self, i: int, copy: bool = False) -> Tensor:
        half = self.rows_ks.dtype in _HALF
        return self.rows_ks[i].to(torch.float32 if half else self.rows_ks.dtype, copy=copy)
