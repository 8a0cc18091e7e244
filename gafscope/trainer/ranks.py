"""Several processes that train one model: what each does, and what all of them know.

Every rank holds the whole model, draws the same macrobatch, and differentiates its own
microbatches of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gafscope.aggregation import Rule
from gafscope.distributed import (
    check_parameters,
    check_same,
    check_shardable,
    sum_over_ranks,
)
from gafscope.distributed.collectives import all_gather, group_device
from gafscope.distributed.heartbeat import Heartbeat
from gafscope.errors import UserError
from gafscope.trainer.interrupt import SIGNALS, Interrupt

# How the libraries below torch.distributed name themselves in their errors.
_LOST = ("gloo", "nccl", "connection", "timed out")


@final
class Ranks:
    """This process among those that train the same model.

    Attributes:
        rank: The own number, from 0.
        count: How many there are, K.
        ended_by: The signal that some rank got and all have agreed to end by; 0 for none.
        interrupt: Where the own signals arrive; None outside of `fit`.
        step: The step that is being made.
    """

    def __init__(self):
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.ended_by = 0
        self.interrupt: Interrupt | None = None
        self.step = -1

    @classmethod
    def found(cls) -> Ranks | None:
        """Find the ranks of this process; None where it is alone."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() < 2:
            return None
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def own(self, microbatches: int) -> range:
        """Give the microbatches that this rank differentiates: m = k / K that lie together.

        Args:
            microbatches: k.
        """
        m = microbatches // self.count
        return range(self.rank * m, (self.rank + 1) * m)

    def check(self, model: nn.Module, microbatches: int | str, rule: Rule) -> None:
        """Refuse what cannot be shared out.

        Args:
            model: The model.
            microbatches: k, or "samples".
            rule: The rule.

        Raises:
            UserError: If k is no multiple of K, the rule needs whole gradients, or the model
                talks to other ranks itself.
        """
        if isinstance(microbatches, str):
            raise UserError(
                f"microbatches='{microbatches}' works in one process only, but there are "
                f"{self.count} ranks; use a number of microbatches that is a multiple of it."
            )
        if microbatches % self.count:
            raise UserError(
                f"The microbatches of all ranks together must be a multiple of their number, but "
                f"microbatches={microbatches} and there are {self.count} ranks; use "
                f"{-(-microbatches // self.count) * self.count}."
            )
        check_shardable(rule)
        for name, module in model.named_modules():
            if isinstance(module, DistributedDataParallel | nn.SyncBatchNorm):
                raise UserError(
                    f"The model holds a {type(module).__name__} ('{name}'), which averages over "
                    "the ranks by itself; give the Trainer the plain model, or use "
                    "gafscope.distribute in a loop of your own."
                )

    def check_alike(self, named: Mapping[str, object]) -> None:
        """Refuse ranks that were started with different code, settings, models or data.

        Args:
            named: What is compared -> what it is on this rank.

        Raises:
            UserError: On every rank, with what differs.
        """
        with self.talking():
            check_same(named)

    def check_equal(self, model: nn.Module) -> None:
        """Refuse to go on when the replicas are no longer the same to the bit.

        Args:
            model: The model.

        Raises:
            UserError: On every rank, with the parameter that parted.
        """
        with self.talking():
            check_parameters(model, self.step)

    def sum(self, *tensors: Tensor) -> list[Tensor]:
        """Add tensors up over the ranks, and agree on a signal that one of them got.

        Args:
            *tensors: Of the same shapes on every rank.

        Returns:
            The sums, float64.
        """
        got = 0 if self.interrupt is None else self.interrupt.requested
        flags = torch.tensor([got == number for number in SIGNALS])
        with self.talking():
            *sums, flags = sum_over_ranks(*tensors, flags)
        self.ended_by = max((n for n, flag in zip(SIGNALS, flags, strict=True) if flag), default=0)
        return sums

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Collect a small tensor of every rank.

        Args:
            tensor: The own one.

        Returns:
            One a rank, in their order.
        """
        with self.talking():
            return list(all_gather(tensor, None))

    def from_leader(self, tensor: Tensor) -> Tensor:
        """Give rank 0's tensor to every rank.

        Args:
            tensor: Rank 0's, or on the others one of its shape and type.
        """
        moved = tensor.to(group_device(None))
        with self.talking():
            dist.broadcast(moved, 0)
        return moved.to(tensor.device)

    def wait(self) -> None:
        """Wait until every rank is here."""
        with self.talking():
            sum_over_ranks(torch.zeros(1))

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Tell the others that this rank is there; say what is wrong when one of them is not.

        Raises:
            UserError: If a collective inside has failed, or the job is to end.
        """
        heart = Heartbeat.current
        if heart is not None:
            heart.arrive(self.step)
        try:
            yield
        except RuntimeError as error:
            text = str(error).lower()
            if heart is None or not any(word in text for word in _LOST):
                raise
            raise UserError(heart.explain()) from error
