"""The three collectives of a step: shards out, sums of a few numbers, the update back.

Together they move what one ring all-reduce moves, P (K - 1) / K numbers out and as many back, and
k^2 doubles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gafscope.distributed.layout import Layout
from gafscope.errors import UserError


def group_ranks(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Give the number of ranks and the own one.

    Args:
        group: The process group, None for the whole job.

    Raises:
        UserError: If there is no process group, or it has one rank only.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise UserError(
            "There is no process group, so there are no ranks to agree with; start the script with "
            "torchrun and call torch.distributed.init_process_group() first."
        )
    ranks = dist.get_world_size(group)
    if ranks < 2:
        raise UserError(
            f"The process group has {ranks} rank, and one rank alone has no other to agree with; "
            "start at least 2 (torchrun --nproc-per-node=2 ...), or train in one process with "
            "gafscope.Trainer or gafscope.watch(..., filter=rule)."
        )
    return ranks, dist.get_rank(group)


def group_device(group: dist.ProcessGroup | None) -> torch.device:
    """Give the device on which a group's collectives run: the CPU wherever they can.

    Args:
        group: The process group, None for the whole job.
    """
    kinds = (group or dist.group.WORLD)._device_types  # pyright: ignore[reportOptionalMemberAccess]
    if torch.device("cpu") in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0].type, torch.accelerator.current_device_index())


def sum_over_ranks(*tensors: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Add tensors up over the ranks, all in one all-reduce of doubles.

    The sums are the same bits on every rank, and so is whatever is decided on them: a ring or a
    tree adds each number up in one place and hands out copies of the result. (DDP's replicas
    stay equal for the same reason.)

    Args:
        tensors: Of the same shapes on every rank; a NaN of any rank is in the sum.
        group: The process group, None for the whole job.

    Returns:
        The sums, float64, on the CPU.
    """
    flat = torch.cat([tensor.detach().double().reshape(-1).cpu() for tensor in tensors])
    flat = flat.to(group_device(group))
    dist.all_reduce(flat, group=group)
    parts = flat.cpu().split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def room_for(layout: Layout, rows: int, extra: int, like: Tensor) -> Tensor:
    """Make the memory that `send_shards` receives into and `gather_shards` collects in.

    It is worth keeping from step to step: fresh pages cost as much as the transfer.

    Args:
        layout: Where the shards end.
        rows: Number m of own rows.
        extra: Numbers that follow each shard of each row.
        like: What gives its type and device.
    """
    needed = layout.ranks * rows * (layout.widths[layout.rank] + extra)
    return like.new_empty(max(needed, layout.ranks * layout.width))


def send_shards(
    send: Tensor,
    layout: Layout,
    rows: int,
    extra: int,
    room: Tensor,
    group: dist.ProcessGroup | None,
) -> tuple[Tensor, Any]:
    """Start to send every rank its shard of the own rows, and to receive the own shard of all.

    Args:
        send: For each rank in turn, its shard of each of the own rows. With one row and nothing
            extra that is the row itself, as it lies.
        layout: Where the shards end.
        rows: Number m of own rows, the same on every rank.
        extra: Numbers that follow each shard of each row.
        room: Memory from `room_for`.
        group: The process group.

    Returns:
        `(received, work)`: the own shard of all rows, (K * m, own width + extra), in the room,
        there once `work.wait()` has returned.
    """
    own, size = layout.widths[layout.rank] + extra, send.itemsize
    received = room[: layout.ranks * rows * own]
    work = dist.all_to_all_single(
        _bytes(received),
        _bytes(send),
        output_split_sizes=[rows * own * size] * layout.ranks,
        input_split_sizes=[rows * (width + extra) * size for width in layout.widths],
        group=group,
        async_op=True,
    )
    return received.view(layout.ranks * rows, own), work


def gather_shards(
    shard: Tensor, layout: Layout, room: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, list[Any]]:
    """Start to collect the shards of an update.

    Args:
        shard: The own shard.
        layout: Where the shards end.
        room: Memory from `room_for`, of the shard's type.
        group: The process group.

    Returns:
        `(flat, works)`: the update, P numbers, there once all `work.wait()` have returned.
    """
    flat = room[: layout.numbers]
    if shard.device.type == "cpu":
        # gloo's all-gather collects in fresh memory and copies from there: twice the time.
        flat[slice(*layout.bounds(layout.rank))] = shard
        parts = [_bytes(flat[slice(*layout.bounds(rank))]) for rank in range(layout.ranks)]
        return flat, [
            dist.broadcast(part, group=group, group_src=rank, async_op=True)
            for rank, part in enumerate(parts)
            if len(part)
        ]
    if len(shard) < layout.width:
        shard = torch.cat([shard, shard.new_zeros(layout.width - len(shard))])
    # The name that PyTorch 2.13 gave it, and the one that it had.
    collect = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    padded = room[: layout.ranks * layout.width]
    return flat, [collect(_bytes(padded), _bytes(shard), group=group, async_op=True)]


def all_gather(tensor: Tensor, group: dist.ProcessGroup | None) -> Sequence[Tensor]:
    """Collect a small tensor of the same shape from every rank.

    Args:
        tensor: The own one.
        group: The process group.

    Returns:
        One a rank, on the tensor's device.
    """
    mine = tensor.contiguous().to(group_device(group))
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    return [one.to(tensor.device) for one in found]


def _bytes(tensor: Tensor) -> Tensor:
    """What is only copied needs no number type, of which gloo lacks some."""
    return tensor.view(torch.uint8)
