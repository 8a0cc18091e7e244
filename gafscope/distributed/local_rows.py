"""The rows of backwards that DDP does not synchronise: those inside `no_sync()`.

DDP lets such backwards add up in `.grad`. Here each one's gradient is taken out of `.grad` as soon
as it is there, so that it becomes a row of its own and the next backward starts from nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


@final
class LocalRows:
    """Watches the replica's backwards.

    Args:
        model: The DDP model.
        parameters: Its trainable parameters.
        begins: Called with the first gradient of a backward that DDP synchronises.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        parameters: Sequence[Tensor],
        begins: Callable[[], None],
    ):
        self.synchronises = True
        self._index = {id(parameter): j for j, parameter in enumerate(parameters)}
        self._rows: list[list[Tensor | None]] = []
        self._task = -1
        self._begins = begins
        # Where gradients are views of DDP's buckets, what is taken out must be a copy.
        self._copies = model.gradient_as_bucket_view
        self._handles: list[Any] = [model.register_forward_pre_hook(self._before_forward)]
        for j, parameter in enumerate(parameters):
            hook = partial(self._accumulated, j)
            self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        """Take all hooks away again."""
        for handle in self._handles:
            handle.remove()

    def clear(self) -> None:
        """Forget the rows: a new macrobatch begins."""
        self._rows.clear()
        self._task = -1

    def flat(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Lay some parameters of each row end to end, zeros where a row has none; once each.

        Args:
            parameters: Those of one bucket, in its order.
        """
        rows = []
        for row in self._rows:
            parts = []
            for parameter in parameters:
                j = self._index[id(parameter)]
                part, row[j] = row[j], None
                part = torch.zeros_like(parameter) if part is None else part
                parts.append(part.detach().reshape(-1))
            rows.append(torch.cat(parts))
        return rows

    def _before_forward(self, model: DistributedDataParallel, inputs: Any) -> None:
        # As DDP itself: what counts is where the forward ran.
        if torch.is_grad_enabled():
            self.synchronises = model.require_backward_grad_sync

    def _accumulated(self, j: int, parameter: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            if self.synchronises:
                self._begins()
            else:
                self._rows.append([None] * len(self._index))
        if self.synchronises:
            return
        gradient = parameter.grad
        if gradient is not None and self._copies:
            gradient = gradient.clone()
        self._rows[-1][j] = gradient
        parameter.grad = None
