"""Endless macrobatches of microbatches, drawn as passes over the data.

Shapes: n samples, k microbatches of u samples each, c pools (one, or one a class).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor

from gafscope.data.augment import check_images, crop_and_flip
from gafscope.data.splits import Split
from gafscope.errors import UserError, unknown_name

BALANCES = ("iid", "given", "true", "single", "similar", "first-flipped", "last-flipped")
"""How microbatches may be composed: at random; balanced by the given or the true labels; of one
given class each; of one group of similar samples each; or of right labels only, but for one
microbatch of wrong ones. Text has tasks in place of classes."""
_ONE_POOL = ("single", "similar")
_FLIPPED_ROW = {"first-flipped": 0, "last-flipped": -1}


@final
class MicrobatchSampler(Iterator[tuple[Tensor, Tensor]]):
    """Endless iterator of macrobatches; rows i*u .. (i+1)*u - 1 are microbatch i.

    Samples are drawn without replacement from a shuffled pool, which is shuffled anew when it
    holds fewer than a macrobatch needs; so no sample occurs twice in a macrobatch. With "iid"
    there is one pool. With "given" and "true" there is one a class, and every microbatch holds
    exactly u / classes samples of each class. With "single" every microbatch is drawn from one
    class by the given labels, the classes of a macrobatch at random and as different as k allows.
    Where the split has tasks (as text has), they take the place of the classes; "similar" is
    "single" by tasks that are groups of similar samples.
    With "first-flipped" and "last-flipped" one microbatch is drawn from the samples whose label is
    wrong, the others from the rest: for studies of what the visiting order decides.

    Args:
        split: The samples; n of them.
        microbatches: k, at least 1.
        microbatch_size: u, at least 1, in samples.
        balance: One of `BALANCES`: "given" is balanced by `split.targets`, "true" by
            `split.true_targets`. The classes are 0 up to the largest label of the split.
        augment: Whether to crop and flip the images, after normalisation.
        seed: Decides the indices and, independently, the augmentation.

    Raises:
        UserError: A size below 1, an unknown balance, k * u above n, u not divisible by the number
            of classes, too few samples of a class or of wrong labels, no classes to balance by, or
            augmentation of inputs that are no images.

    Example:
        >>> labels = torch.arange(12) % 3
        >>> split = Split(torch.randn(12, 5), labels, labels)
        >>> sampler = MicrobatchSampler(split, microbatches=2, microbatch_size=3, balance="given")
        >>> inputs, targets = next(sampler)
        >>> tuple(inputs.shape), targets.tolist()
        ((6, 5), [0, 1, 2, 0, 1, 2])
    """

    def __init__(
        self,
        split: Split,
        *,
        microbatches: int,
        microbatch_size: int,
        balance: str = "iid",
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        _check_sizes(len(split), microbatches, microbatch_size)
        labels = _pool_labels(split, balance)
        sizes = torch.bincount(labels, minlength=2 if balance in _FLIPPED_ROW else 1)
        _check_pools(sizes, microbatches, microbatch_size, balance)
        if augment:
            check_images(split.inputs)
        self._split = split
        self._microbatches = microbatches
        self._microbatch_size = microbatch_size
        self._balance = balance
        self._augment = augment
        self._generator = torch.Generator().manual_seed(seed)
        # Its own stream, so that augmentation does not change which samples are drawn.
        own_seed = int(torch.randint(2**31, (), generator=self._generator))
        self._augment_generator = torch.Generator().manual_seed(own_seed)
        # Pool p is the stretch order[start[p] : start[p] + sizes[p]]; its first used[p] are spent.
        self._order_n = labels.argsort(stable=True)
        self._sizes_c = sizes
        self._start_c = sizes.cumsum(0) - sizes
        self._used_c = sizes.clone()
        self._last_indices = torch.empty(0, dtype=torch.int64)
        self._layout = None if balance in _ONE_POOL else self._lay_out(self._pools())

    @property
    def microbatches(self) -> int:
        """How many microbatches a macrobatch has, k."""
        return self._microbatches

    @property
    def microbatch_size(self) -> int:
        """How many samples a microbatch has, u."""
        return self._microbatch_size

    @property
    def last_indices(self) -> Tensor:
        """Where the latest macrobatch lies in the split: (k*u,) int64; empty before the first."""
        return self._last_indices

    def __next__(self) -> tuple[Tensor, Tensor]:
        self._last_indices = self._draw()
        inputs, targets = self._split.batch(self._last_indices)
        if self._augment:
            inputs = crop_and_flip(inputs, self._augment_generator)
        return inputs, targets

    def state_dict(self) -> dict[str, Any]:
        """Give all that decides the macrobatches to come, for `load_state_dict`.

        Returns:
            Tensors, integers and strings only, so that `torch.load(weights_only=True)` reads it.
        """
        return self._settings() | {
            "generator": self._generator.get_state(),
            "augment_generator": self._augment_generator.get_state(),
            "order": self._order_n.clone(),
            "used": self._used_c.clone(),
            "last_indices": self._last_indices.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where the sampler that gave `state` stood.

        Args:
            state: What `state_dict` gave, of a sampler over the same split.

        Raises:
            UserError: The state belongs to a sampler with other sizes or another balance.
        """
        for name, value in self._settings().items():
            if state.get(name) != value:
                raise UserError(
                    f"The sampler's state was saved with {name}={state.get(name)!r}, but this "
                    f"sampler has {name}={value!r}: build it with the settings it was saved with."
                )
        self._generator.set_state(state["generator"].cpu())
        self._augment_generator.set_state(state["augment_generator"].cpu())
        self._order_n = state["order"].cpu().clone()
        self._used_c = state["used"].cpu().clone()
        self._last_indices = state["last_indices"].cpu().clone()

    def _settings(self) -> dict[str, Any]:
        return {
            "samples": len(self._split),
            "microbatches": self._microbatches,
            "microbatch_size": self._microbatch_size,
            "balance": self._balance,
            "augment": self._augment,
        }

    def _draw(self) -> Tensor:
        pools, turns, each_c = self._layout or self._lay_out(self._pools())
        for pool in (self._sizes_c - self._used_c < each_c).nonzero()[:, 0].tolist():
            self._shuffle(pool)
        drawn = self._order_n[(self._start_c + self._used_c)[pools] + turns]
        self._used_c += each_c
        return drawn

    def _lay_out(self, pools: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Let the places of one pool take its samples in turn.

        Returns:
            The pool of each place; the place's turn in it; how many places each pool has.
        """
        each_c = torch.bincount(pools, minlength=len(self._sizes_c))
        turns = torch.empty_like(pools)
        turns[pools.argsort(stable=True)] = torch.arange(len(pools)) - (
            each_c.cumsum(0) - each_c
        ).repeat_interleave(each_c)
        return pools, turns, each_c

    def _pools(self) -> Tensor:
        """Give the pool of each place of a macrobatch, (k*u,), microbatch after microbatch."""
        k, u, pools = self._microbatches, self._microbatch_size, len(self._sizes_c)
        if self._balance in _ONE_POOL:
            classes = torch.randperm(pools, generator=self._generator)
            return classes[torch.arange(k) % pools].repeat_interleave(u)
        if self._balance in _FLIPPED_ROW:
            flipped = torch.zeros(k, dtype=torch.int64)
            flipped[_FLIPPED_ROW[self._balance]] = 1
            return flipped.repeat_interleave(u)
        return torch.arange(pools).repeat_interleave(u // pools).repeat(k)

    def _shuffle(self, pool: int) -> None:
        start, size = int(self._start_c[pool]), int(self._sizes_c[pool])
        members = self._order_n[start : start + size]
        members.copy_(members[torch.randperm(size, generator=self._generator)])
        self._used_c[pool] = 0


def _pool_labels(split: Split, balance: str) -> Tensor:
    if balance == "iid":
        return torch.zeros(len(split), dtype=torch.int64)
    if balance in ("given", "true", *_ONE_POOL):
        if split.tasks is not None:
            return split.tasks.cpu()
        if balance == "similar" or split.targets.ndim > 1:
            raise UserError(
                f"balance='{balance}' goes by the tasks of the samples, but this split has none: "
                "give it `tasks`, or use balance='iid'."
            )
        return (split.true_targets if balance == "true" else split.targets).cpu()
    if balance in _FLIPPED_ROW:
        return split.flipped.cpu().long()
    raise unknown_name("balance", balance, BALANCES)


def _check_sizes(n: int, microbatches: int, microbatch_size: int) -> None:
    for name, value in (("microbatches", microbatches), ("microbatch_size", microbatch_size)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, found {value}: raise it.")
    if microbatches * microbatch_size > n:
        raise UserError(
            f"One macrobatch must fit into the data: {microbatches} microbatches of "
            f"{microbatch_size} are {microbatches * microbatch_size} samples, but there are {n}. "
            "Lower microbatches or microbatch_size, or use more data."
        )


def _check_pools(sizes: Tensor, microbatches: int, microbatch_size: int, balance: str) -> None:
    if balance in ("given", "true"):
        _check_classes(sizes, microbatches, microbatch_size, balance)
    elif balance in _ONE_POOL:
        need = microbatch_size * -(-microbatches // len(sizes))
        if int(sizes.min()) < need:
            raise UserError(
                f"Class {int(sizes.argmin())} has {int(sizes.min())} samples by its given labels, "
                f"but microbatches of one class need {need} of each: lower microbatch_size or "
                "microbatches, or use balance='iid'."
            )
    elif balance in _FLIPPED_ROW:
        right, wrong = sizes.tolist()
        if wrong < microbatch_size or right < (microbatches - 1) * microbatch_size:
            raise UserError(
                f"balance='{balance}' needs {microbatch_size} samples with a wrong label and "
                f"{(microbatches - 1) * microbatch_size} with a right one in a macrobatch, but "
                f"there are {wrong} and {right}: change label_noise or the sizes."
            )


def _check_classes(sizes: Tensor, microbatches: int, microbatch_size: int, balance: str) -> None:
    classes = len(sizes)
    if microbatch_size % classes:
        below = microbatch_size // classes * classes
        usable = f"{below} or {below + classes}" if below else f"{classes}"
        raise UserError(
            f"microbatch_size must be a multiple of the number of classes, {classes}, with "
            f"balance='{balance}', found {microbatch_size}: use {usable}, or balance='iid'."
        )
    need = microbatches * microbatch_size // classes
    if int(sizes.min()) < need:
        raise UserError(
            f"Class {int(sizes.argmin())} has {int(sizes.min())} samples by its {balance} labels, "
            f"but one macrobatch of {microbatches} x {microbatch_size} needs {need} of each class: "
            "lower microbatches or microbatch_size, or use balance='iid'."
        )
