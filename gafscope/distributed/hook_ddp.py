# pyright: reportPrivateImportUsage=false
"""A communication hook of DistributedDataParallel that agrees instead of averaging.

DDP hands over a bucket as soon as its gradients are there. Its shards set out at once and travel
while the backward goes on; every answer is held back until the last bucket's are there, so that
one decision serves the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from gafscope.distributed.collectives import (
    group_device,
    group_ranks,
    room_for,
    send_shards,
    sum_over_ranks,
)
from gafscope.distributed.decide import Agreed, decide_by_part, decide_on_shards, wants_layers
from gafscope.distributed.layout import Layout
from gafscope.distributed.local_rows import LocalRows
from gafscope.distributed.options import Options
from gafscope.distributed.shards import Home, Shards
from gafscope.errors import UserError
from gafscope.gradients import Gramian

_HOLDER = "_gafscope_hook"


@final
@dataclass(eq=False)
class _Sent:
    """A bucket whose shards are on their way."""

    buffer: Tensor
    layout: Layout
    send: Tensor
    received: Tensor
    room: Tensor
    work: Any
    future: Future[Tensor]


@final
class BucketHook:
    """Decides for one DDP model, backward by backward.

    Args:
        model: The DDP model.
        parameters: Its trainable parameters by name.
        options: How to decide.
    """

    def __init__(
        self, model: DistributedDataParallel, parameters: dict[str, Tensor], options: Options
    ):
        self.group: Any = model.process_group
        self.ranks, self.rank = group_ranks(self.group)
        self.agreed: Agreed | None = None
        self.own_rows = 1
        self.step = 0
        self._parameters, self._options = parameters, options
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._local = LocalRows(model, list(parameters.values()), self._begin)
        self._sent: list[_Sent] = []
        self._counts: list[Tensor] = []
        self._counting: Any = None
        self._rooms: dict[int, tuple[Any, Tensor]] = {}
        self._holder = _install(model, self)

    def remove(self) -> None:
        """Let DDP average again."""
        self._holder.active = None
        self._local.close()

    def close(self) -> Agreed:
        """End the macrobatch at the optimizer's step, and give what was agreed on.

        Raises:
            UserError: If no backward was synchronised since the last step.
        """
        agreed, self.agreed = self.agreed, None
        if agreed is None:
            rows = len(self._local)
            raise UserError(
                "The optimizer steps, but no backward was synchronised since its last step"
                + (f" ({rows} ran inside no_sync)" if rows else "")
                + ", so the ranks have agreed on nothing; run the last forward and backward of "
                "each step outside no_sync()."
            )
        self._local.clear()
        self.step += 1
        return agreed

    @property
    def rows_begun(self) -> int:
        """Backwards of the macrobatch at hand that are over, for this rank."""
        return len(self._local) + (self.agreed is not None)

    def left_out(self, agreed: Agreed) -> list[Tensor]:
        """Give the parameters that stay as they are, though the step is taken."""
        return [self._parameters[name] for name in agreed.left_out]

    def __call__(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Send a bucket's shards; with the last one, decide.

        Args:
            bucket: The gradients of some parameters, as this rank has them.

        Returns:
            The future update of these parameters.
        """
        if not self._sent:
            self._check_counts()
        buffer, parameters = bucket.buffer(), bucket.parameters()
        named = {self._names[id(parameter)]: parameter for parameter in parameters}
        layout = Layout.of(named, self.ranks, self.rank)
        rows = [*self._local.flat(parameters), buffer]
        send = _packed(rows, layout, self._options.dtype or buffer.dtype)
        room = self._room(bucket.index(), layout, len(rows), send)
        received, work = send_shards(send, layout, len(rows), 0, room, self.group)
        cuda = buffer.device.type != "cpu"
        future: Future[Tensor] = Future(devices=[buffer.device]) if cuda else Future()
        self._sent.append(_Sent(buffer, layout, send, received, room, work, future))
        if bucket.is_last():
            self._finish()
        return future

    def _begin(self) -> None:
        if self.agreed is not None:
            raise UserError(
                "A second backward was synchronised before the optimizer's step, but the ranks "
                "have agreed on this step's update already; run all but the last forward and "
                "backward of each step inside `with ddp_model.no_sync():`."
            )
        self._sent = []  # of a backward that failed half-way
        self.own_rows = len(self._local) + 1
        # It travels while the first bucket fills.
        mine = torch.tensor([self.own_rows], device=group_device(self.group))
        self._counts = [torch.empty_like(mine) for _ in range(self.ranks)]
        self._counting = dist.all_gather(self._counts, mine, group=self.group, async_op=True)

    def _check_counts(self) -> None:
        self._counting.wait()
        found = [int(count) for count in self._counts]
        if len(set(found)) > 1:
            raise UserError(
                "The ranks ran different numbers of backwards before this step ("
                + ", ".join(f"rank {rank}: {m}" for rank, m in enumerate(found))
                + "), so their rows cannot be compared; give every rank as many microbatches "
                "(drop_last=True)."
            )

    def _room(self, index: int, layout: Layout, rows: int, send: Tensor) -> Tensor:
        """Keep each bucket's memory; DDP makes its buckets anew once, after the first backward."""
        kind = (layout.numbers, rows, send.dtype)
        if index not in self._rooms or self._rooms[index][0] != kind:
            self._rooms[index] = kind, room_for(layout, rows, 0, send)
        return self._rooms[index][1]

    def _finish(self) -> None:
        sent, self._sent = self._sent, []
        parts: list[Shards] = []
        sums: list[list[Tensor]] = []
        layers = wants_layers(self._options.rule)
        for one in sent:  # while the later ones travel
            one.work.wait()
            home = Home(one.layout, one.room, self.group)
            used = torch.ones(len(one.received), len(one.layout.shapes), dtype=torch.bool)
            names, own = list(one.layout.shapes), one.layout.own
            shards = Shards(one.received, used, names, own, self.ranks, home)
            parts.append(shards.averaged(self._options.group_size))
            matrix, matrices = parts[-1].partial_gramian(layers)
            sums.append([matrix, *matrices.values()])
        agreed = self._decide(parts, sums)
        self._answer(sent, parts, agreed)
        self.agreed = agreed

    def _decide(self, parts: Sequence[Shards], sums: Sequence[Sequence[Tensor]]) -> Agreed:
        options = self._options
        order = options.visits(parts[0].k, self.step)
        if options.scope == "bucket":
            matrices = sum_over_ranks(*(matrix for matrix, *_ in sums), group=self.group)
            agreed = decide_by_part(options.rule, parts, matrices, order)
            skipped = [parts[int(i)].names for i in agreed.left_out]
            names = frozenset(name for one in skipped for name in one)
            return Agreed(agreed.decision, agreed.updates, names, agreed.scalars)
        whole = torch.stack([matrix for matrix, *_ in sums]).sum(0)
        layers = [matrix for _, *matrices in sums for matrix in matrices]
        matrix, *layers = sum_over_ranks(whole, *layers, group=self.group)
        names = [name for part in parts for name in part.names] if layers else []
        gramian = Gramian(matrix, dict(zip(names, layers, strict=True)))
        return decide_on_shards(options.rule, parts, gramian, self._parameters, order, self.group)

    def _answer(self, sent: Sequence[_Sent], parts: Sequence[Shards], agreed: Agreed) -> None:
        if agreed.updates is None:
            for one in sent:
                one.future.set_result(one.buffer.zero_())
            return
        # On the loop's own scale: plain DDP would give the ranks' mean of the sum of their rows.
        under_way = [
            part.start_gather(update if self.own_rows == 1 else update.mul_(self.own_rows))
            for part, update in zip(parts, agreed.updates, strict=True)
        ]
        for one, (flat, works) in zip(sent, under_way, strict=True):
            for work in works:
                work.wait()
            one.future.set_result(flat.to(one.buffer.dtype))


def _packed(rows: Sequence[Tensor], layout: Layout, dtype: torch.dtype) -> Tensor:
    """Order rows by the rank that their shards are for; one row is in that order as it is."""
    if len(rows) == 1:
        return rows[0].to(dtype)
    shards = [row[slice(*layout.bounds(rank))] for rank in range(layout.ranks) for row in rows]
    return torch.cat(shards).to(dtype)


@final
class _Holder:
    """What DDP calls for good: it takes one hook only, and never gives it back."""

    def __init__(self):
        self.active: BucketHook | None = None

    def __call__(self, group: dist.ProcessGroup, bucket: dist.GradBucket) -> Future[Tensor]:
        if self.active is not None:
            return self.active(bucket)
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        return allreduce_hook(group, bucket)


def _install(model: DistributedDataParallel, hook: BucketHook) -> _Holder:
    holder: _Holder | None = getattr(model, _HOLDER, None)
    if holder is None:
        if model._comm_hooks:
            raise UserError(
                "This DistributedDataParallel model has a communication hook already, and takes "
                "only one; wrap the model anew and leave the other hook out (dtype=torch.bfloat16 "
                "of distribute sends half as many bytes)."
            )
        holder = _Holder()
        model.register_comm_hook(model.process_group, _call(holder))
        object.__setattr__(model, _HOLDER, holder)
    if holder.active is not None:
        raise UserError(
            "The ranks agree on this model's gradients already; call remove() on what distribute "
            "returned before it is called again."
        )
    holder.active = hook
    return holder


def _call(holder: _Holder) -> Any:
    # A function, and without annotations, since DDP refuses those that are strings.
    def agree(group, bucket):
        return holder(group, bucket)

    return agree
