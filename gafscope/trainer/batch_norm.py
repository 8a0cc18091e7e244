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
        self._restore()
        for i in microbatches if self._layers else ():
            for j, layer in enumerate(self._layers):
                part = slice(3 * j, 3 * j + 3)
                _move(layer, self._before[part], self._after[i][part])

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
        for buffer, value in zip(self._buffers(), self._before, strict=True):
            buffer.copy_(value)


def _move(layer: _NormBase, before: list[Tensor], after: list[Tensor]) -> None:
    """Apply to `layer` the change that one microbatch made from `before` to `after`.

    A forward with momentum m is r <- (1 - m) r + m b. After c forwards r depends on its start
    only through (1 - m)^c, so from another start r they give after + (1 - m)^c (r - before).
    With m = None, r is the plain average over all forwards so far.
    """
    assert layer.running_mean is not None and layer.running_var is not None
    assert layer.num_batches_tracked is not None
    count, count_before, count_after = layer.num_batches_tracked, before[2], after[2]
    forwards = count_after - count_before
    for running, old, new in (
        (layer.running_mean, before[0], after[0]),
        (layer.running_var, before[1], after[1]),
    ):
        if layer.momentum is None:
            added = new * count_after - old * count_before
            running.copy_((running * count + added) / (count + forwards))
        else:
            running.copy_(new + (1 - layer.momentum) ** int(forwards) * (running - old))
    count += forwards
