"""Ranks compare what they were given at the start, and their parameters now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gafscope.distributed.collectives import all_gather
from gafscope.errors import UserError

_T = TypeVar("_T")
_MISSING = "missing"
# Words that are hashed at a time, so that the products need little memory.
_BLOCK = 1 << 20


def check_same(named: Mapping[str, object], group: dist.ProcessGroup | None = None) -> None:
    """Refuse ranks that were not all started alike.

    Collective.

    Args:
        named: What is compared -> its value, which must show itself in full as a string.
        group: The process group, None for the whole job.

    Raises:
        UserError: On every rank, if any value differs anywhere; rank 0's says which.
    """
    mine = {name: str(value) for name, value in named.items()}
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    names = dict.fromkeys(name for one in everyone for name in one)
    parted = [name for name in names if len({one.get(name, _MISSING) for one in everyone}) > 1]
    if not parted:
        return
    if dist.get_rank(group):
        raise UserError("The ranks were not all started alike; rank 0 says what differs.")
    found: dict[str, list[int]] = {}
    for rank, one in enumerate(everyone):
        found.setdefault(one.get(parted[0], _MISSING), []).append(rank)
    values = " but ".join(f"{value!r} on {_listed(ranks)}" for value, ranks in found.items())
    more = f" ({len(parted) - 1} more differ, such as {parted[1]})" if parted[1:] else ""
    raise UserError(
        f"The ranks were not all started alike: {parted[0]} is {values}{more}; start every rank "
        "with the same code, settings and data."
    )


def all_or_none(check: Callable[[], _T], group: dist.ProcessGroup | None = None) -> _T:
    """Make a mistake of one rank end them all, where the others would wait for it.

    Collective.

    Args:
        check: What each rank does for itself before all begin.
        group: The process group, None for the whole job.

    Returns:
        What `check` returns.

    Raises:
        UserError: On every rank, if `check` raised one on any.
    """
    result, mistake = None, ""
    try:
        result = check()
    except UserError as error:
        mistake = str(error)
    mistakes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(mistakes, mistake, group=group)
    if mistake:
        raise UserError(mistake)
    for rank, other in enumerate(mistakes):
        if other:
            raise UserError(f"Rank {rank} could not start: {other}")
    return cast(_T, result)


def described_parameters(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """Describe parameters for `check_same`.

    Args:
        parameters: By name.

    Returns:
        What is compared -> its description: the names in their order, then each one's shape.
    """
    kinds = {
        f"parameter '{name}'": f"{tuple(tensor.shape)} {tensor.dtype}"
        for name, tensor in parameters.items()
    }
    return {**kinds, "order of the parameters": ", ".join(parameters)}


def check_parameters(model: nn.Module, step: int, group: dist.ProcessGroup | None = None) -> None:
    """Refuse to go on with replicas that are no longer the same to the bit.

    Collective; it moves one number a parameter.

    Args:
        model: The own replica, not sharded.
        step: The step's number, for the message.
        group: The process group, None for the whole job.

    Raises:
        UserError: On every rank, naming the first parameter that parted and the ranks.
    """
    named = dict(model.named_parameters())
    hashes = torch.stack([hashed(parameter) for parameter in named.values()])
    found = torch.stack(list(all_gather(hashes, group))).cpu()
    same = (found == found[0]).all(0)
    if bool(same.all()):
        return
    first = int((~same).nonzero()[0])
    by_hash: dict[int, list[int]] = {}
    for rank, value in enumerate(found[:, first].tolist()):
        by_hash.setdefault(value, []).append(rank)
    sides = " against ".join(_listed(ranks) for ranks in by_hash.values())
    raise UserError(
        f"The ranks' parameters are no longer the same: '{list(named)[first]}' is the first that "
        f"differs at step {step} ({sides}; {int((~same).sum())} of {len(named)} differ). Something "
        "changed it on some ranks only: a step of the optimizer outside the agreed ones, a random "
        "initialisation after the start, or a faulty device; go on from the last checkpoint."
    )


def hashed(tensor: Tensor) -> Tensor:
    """Hash a tensor's bits where it lies: `sum_i bits_i * odd_i` modulo 2^64.

    A change of a single number always changes the sum, since an odd factor has an inverse.

    Args:
        tensor: Any tensor.

    Returns:
        A whole number, int64, on the CPU.
    """
    flat = tensor.detach().reshape(-1)
    words = flat.view(
        {1: torch.int8, 2: torch.int16, 4: torch.int32}.get(flat.itemsize, torch.int64)
    )
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK].long()
        places = torch.arange(start, start + len(block), device=words.device)
        total += (block * ((places * 0x5851F42D4C957F2D) | 1)).sum()
    return total.cpu()


def _listed(ranks: Iterable[int]) -> str:
    numbers = [str(rank) for rank in ranks]
    return f"rank{'s' if numbers[1:] else ''} {', '.join(numbers)}"
