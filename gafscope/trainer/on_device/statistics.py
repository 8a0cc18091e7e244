# pyright: reportPrivateImportUsage=false
"""BatchNorm's running statistics, moved by the microbatches that a mask on the device names.

The arithmetic is `gradients.batch_norm.RunningStatistics`', on all layers laid end to end.

Shape legend: k microbatches; L layers; N numbers, the means and variances of all layers.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_State = tuple[Tensor, Tensor]  # the numbers (N,), and how many forwards each layer saw (L,)


def normalising_layers(model: nn.Module) -> list[_BatchNorm]:
    """Give the layers that keep running statistics.

    Args:
        model: The model.
    """
    modules = model.modules()
    return [m for m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None]


@final
class DeviceStatistics:
    """The running statistics of a model during one macrobatch.

    Use: `begin()`; after each microbatch's backward `collect(...)`; at the end `commit(...)`.

    Args:
        model: Its layers have a momentum (no plain average over all forwards).
    """

    def __init__(self, model: nn.Module):
        self._layers = normalising_layers(model)
        self._states: list[_State] = []
        if not self._layers:
            return
        device = self._numbers()[0].device
        widths = [layer.num_features for layer in self._layers] * 2
        layers = torch.arange(len(self._layers), device=device).repeat(2)
        self._layer_of_N = layers.repeat_interleave(torch.tensor(widths, device=device))
        decay = [1 - (layer.momentum or 0.0) for layer in self._layers]
        self._decay_L = torch.tensor(decay, dtype=torch.float64, device=device)

    def begin(self) -> None:
        """Remember the statistics as they are before the macrobatch."""
        if self._layers:
            self._states = [self._read()]

    @torch.no_grad()
    def collect(self, finite: Bool[Tensor, ""]) -> None:
        """Remember the statistics after a microbatch's forward and backward.

        Args:
            finite: Whether its loss was; if not, it may have left NaN behind, and is undone.
        """
        if self._layers:
            last = self._states[-1]
            numbers, counts = self._read()
            after = torch.where(finite, numbers, last[0]), torch.where(finite, counts, last[1])
            self._write(after)
            self._states.append(after)

    @torch.no_grad()
    def commit(self, moved_k: Bool[Tensor, " k"]) -> None:
        """Leave the statistics as if only these microbatches had been seen, in this order.

        Args:
            moved_k: Which microbatches.
        """
        if not self._layers:
            return
        numbers, counts = self._states[0]
        for moved, before, after in zip(moved_k, self._states, self._states[1:], strict=False):
            forwards = after[1] - before[1]
            decay = (self._decay_L**forwards)[self._layer_of_N].to(numbers.dtype)
            shifted = numbers * decay - before[0] * decay + after[0]
            numbers = torch.where(moved, shifted, numbers)
            counts = torch.where(moved, counts + forwards, counts)
        # Where all have moved them, they are as PyTorch left them, to the last bit.
        numbers = torch.where(moved_k.all(), self._states[-1][0], numbers)
        self._write((numbers, counts))

    def _numbers(self) -> list[Tensor]:
        means = [layer.running_mean for layer in self._layers]
        return [b for b in means + [layer.running_var for layer in self._layers] if b is not None]

    def _counts(self) -> list[Tensor]:
        counts = [layer.num_batches_tracked for layer in self._layers]
        return [count for count in counts if count is not None]

    def _read(self) -> _State:
        return torch.cat(self._numbers()), torch.stack(self._counts())

    def _write(self, state: _State) -> None:
        numbers = self._numbers()
        torch._foreach_copy_(numbers, list(state[0].split([b.numel() for b in numbers])))
        torch._foreach_copy_(self._counts(), list(state[1].unbind()))
