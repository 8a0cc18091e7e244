# pyright: reportPrivateImportUsage=false
"""BatchNorm's running statistics, moved by chosen microbatches only.

Every microbatch is normalised by its own statistics, as on a rank of its own. PyTorch moves the
running statistics at each forward; what rejected microbatches did to them is taken out again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm


@final
class RunningStatistics:
    """The running statistics of a model during one macrobatch.

    Use: `begin()`; after each microbatch's backward `collect()`; at the end `commit(indices)`.
    """

    def __init__(self, model: nn.Module):
        self._layers = [
            module
            for module in model.modules()
            if isinstance(module, _NormBase) and module.running_mean is not None
        ]
        # The statistics before the first microbatch, and before and after each one.
        self._start: list[Tensor] = []
        self._changes: list[tuple[list[Tensor], list[Tensor]]] = []
        self._in_place = True

    def begin(self) -> None:
        """Remember the statistics as they are before the macrobatch."""
        self._start, self._changes, self._in_place = self._copy(), [], True

    def restart(self) -> None:
        """Begin a macrobatch where the last microbatch ended, though a forward came since."""
        self._start, self._changes = self._last(), []

    def collect(self, finite: bool) -> None:
        """Remember the statistics after a microbatch's forward and backward.

        Args:
            finite: Whether it was; if not, it may have left NaN behind, and is undone.
        """
        if not self._layers:
            return
        last = self._last()
        if finite:
            self._changes.append((last, self._copy()))
        else:
            self._restore(last)
            self._changes.append((last, last))

    def gather(self, collect: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """Put the microbatches of all ranks in place of the own ones.

        Every rank's first microbatch began where this rank's did.

        Args:
            collect: Gives every rank's tensor, in the order of the ranks, for the own one; called
                if there are statistics at all. Counts and numbers travel as doubles, unchanged.
        """
        if not self._layers:
            return
        own = [torch.cat([b.double().flatten() for b in after]) for _, after in self._changes]
        self._changes, self._in_place = [], False
        for rank_mn in collect(torch.stack(own)):
            last = self._start
            for state_n in rank_mn:
                parts = state_n.split([buffer.numel() for buffer in last])
                pairs = zip(parts, last, strict=True)
                after = [part.view(buffer.shape).to(buffer) for part, buffer in pairs]
                self._changes.append((last, after))
                last = after

    @torch.no_grad()
    def commit(self, microbatches: Sequence[int]) -> None:
        """Leave the statistics as if only these microbatches had been seen, in this order.

        Args:
            microbatches: Indices, ascending, in the order of the calls to `collect`.
        """
        if not self._layers or (self._in_place and len(microbatches) == len(self._changes)):
            return
        self._restore(self._start)
        for i in microbatches:
            self._move(*self._changes[i])

    def _move(self, before: list[Tensor], after: list[Tensor]) -> None:
        """Apply the change that one microbatch made from `before` to `after`.

        With momentum m, a forward is r <- (1 - m) r + m b. After c forwards r depends on its start
        only through (1 - m)^c, so from another start r they give (1 - m)^c (r - before) + after.
        With m = None, r is the plain average over all forwards so far.
        """
        now = self._buffers()
        counts = zip(self._layers, now[2::3], before[2::3], after[2::3], strict=True)
        factors = [
            _factors(layer, int(count), int(old), int(new)) for layer, count, old, new in counts
        ]
        for j in (0, 1):  # the means, then the variances, of all layers at once
            keep, remove, gain = (list(column) for column in zip(*factors, strict=True))
            moved = torch._foreach_mul(now[j::3], keep)
            torch._foreach_sub_(moved, torch._foreach_mul(before[j::3], remove))
            torch._foreach_add_(moved, torch._foreach_mul(after[j::3], gain))
            torch._foreach_copy_(now[j::3], moved)
        for count, old, new in zip(now[2::3], before[2::3], after[2::3], strict=True):
            count += new - old

    def _last(self) -> list[Tensor]:
        return self._changes[-1][1] if self._changes else self._start

    def _buffers(self) -> list[Tensor]:
        return [
            buffer
            for layer in self._layers
            for buffer in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
            if buffer is not None
        ]

    def _copy(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self._buffers()]

    @torch.no_grad()
    def _restore(self, state: list[Tensor]) -> None:
        torch._foreach_copy_(self._buffers(), state)


def _factors(layer: _NormBase, count: int, old: int, new: int) -> tuple[float, ...]:
    """Give factors (keep, remove, gain): r <- keep * r - remove * before + gain * after."""
    if layer.momentum is None:
        total = count + new - old
        return (count / total, old / total, new / total) if total else (1.0, 1.0, 1.0)
    # InstanceNorm does not count its forwards.
    forwards = int(layer.training) if isinstance(layer, _InstanceNorm) else new - old
    decay = (1 - layer.momentum) ** forwards
    return decay, decay, 1.0
