"""BatchNorm's running statistics, moved by chosen microbatches only.

Every microbatch is normalised by its own statistics, as on a rank of its own. Its contribution
to the running statistics is kept apart until it is known whether its gradient was accepted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@final
class RunningStatistics:
    """The running statistics of a model during one macrobatch.

    Use: `begin()`; after each microbatch's forward `collect()`; at the end `commit(indices)`.
    """

    def __init__(self, model: nn.Module):
        self._layers = [
            module
            for module in model.modules()
            if isinstance(module, _NormBase) and module.running_mean is not None
        ]
        self._before: list[Tensor] = []
        self._after: list[list[Tensor]] = []

    def begin(self) -> None:
        """Remember the statistics as they are before the macrobatch."""
        self._before = self._copy()
        self._after = []

    def collect(self) -> None:
        """Set a microbatch's statistics apart and go back to those before the macrobatch."""
        if self._layers:
            self._after.append(self._copy())
            self._restore()

    @torch.no_grad()
    def commit(self, microbatches: Iterable[int]) -> None:
        """Move the running statistics by these microbatches, in this order.

        Args:
            microbatches: Indices, in the order of the calls to `collect`.
        """
        if self._layers:
            self._restore()
            for i in microbatches:
                self._move(self._after[i])

    def _move(self, after: list[Tensor]) -> None:
        """Apply the change that one microbatch made from `before` to `after`.

        With momentum m, a forward is r <- (1 - m) r + m b. After c forwards r depends on its start
        only through (1 - m)^c, so from another start r they give (1 - m)^c (r - before) + after.
        With m = None, r is the plain average over all forwards so far.
        """
        now, before = self._buffers(), self._before
        factors = [
            factor
            for layer, count, old, new in zip(
                self._layers, now[2::3], before[2::3], after[2::3], strict=True
            )
            # One for the mean, one for the variance, none for the count.
            for factor in (
                *[_factors(layer.momentum, int(count), int(old), int(new))] * 2,
                (1,) * 3,
            )
        ]
        moved = [
            (current * keep - start * remove) + end * gain
            for current, start, end, (keep, remove, gain) in zip(
                now, before, after, factors, strict=True
            )
        ]
        _copy_into(now, moved)

    def _buffers(self) -> list[Tensor]:
        return [
            buffer
            for layer in self._layers
            for buffer in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
            if buffer is not None
        ]

    def _copy(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self._buffers()]

    def _restore(self) -> None:
        _copy_into(self._buffers(), self._before)


def _factors(momentum: float | None, count: int, old: int, new: int) -> tuple[float, ...]:
    """Give factors (keep, remove, gain): r <- keep * r - remove * before + gain * after."""
    if momentum is None:
        total = count + new - old
        return (count / total, old / total, new / total) if total else (1.0, 1.0, 1.0)
    decay = (1 - momentum) ** (new - old)
    return decay, decay, 1.0


def _copy_into(targets: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(targets, values)  # pyright: ignore[reportPrivateImportUsage]
