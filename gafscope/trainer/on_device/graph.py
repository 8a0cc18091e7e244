"""A CUDA graph of a step: one launch instead of thousands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

_PLAIN = (bool, int, float, str, tuple, type(None))
_WARM_UPS = 3  # as torch's documentation of CUDA graphs asks for


@final
class DeviceGraph:
    """Runs a step on the GPU, captured once its shapes and hyperparameters have settled.

    The first steps run uncaptured, since libraries set themselves up in them; they are steps like
    all others. After a change of the batch's shape or of a learning rate, or where optimizer state
    was loaded, this begins anew. In a graph all microbatches of a step draw from one seed, one
    after the other.

    Args:
        compute: `(batch, draw) -> record`. It must not wait for the GPU.
        optimizer: Its hyperparameters are constants of the graph.
    """

    def __init__(
        self, compute: Callable[[Any, Callable[[int], None]], Tensor], optimizer: Optimizer
    ):
        self._compute = compute
        self._optimizer = optimizer
        self._stream = torch.cuda.Stream()
        self._settled: object = None
        self._runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Any = None
        self._record = torch.empty(0)

    def __call__(self, batch: Any, draw: Callable[[int], None]) -> Tensor:
        """Do one step.

        Args:
            batch: The macrobatch, on the GPU.
            draw: Seeds the generators for a microbatch.

        Returns:
            The step's record.
        """
        leaves = pytree.tree_leaves(batch)
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        situation = shapes, _constants(self._optimizer), _places(self._optimizer)
        if situation != self._settled:
            self._settled, self._runs, self._graph = situation, 0, None
        self._runs += 1
        if self._runs <= _WARM_UPS:
            return self._uncaptured(batch, draw)
        if self._graph is None:
            self._capture(batch)
        assert self._graph is not None
        for mine, leaf in zip(pytree.tree_leaves(self._batch), leaves, strict=True):
            mine.copy_(leaf)
        draw(0)
        self._graph.replay()
        return self._record.clone()

    def _uncaptured(self, batch: Any, draw: Callable[[int], None]) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            record = self._compute(batch, draw)
        torch.cuda.current_stream().wait_stream(self._stream)
        return record

    def _capture(self, batch: Any) -> None:
        """Record the step's kernels; none of them runs."""
        self._batch = pytree.tree_map(torch.clone, batch)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._record = self._compute(self._batch, lambda _: None)


def _constants(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if isinstance(value, _PLAIN)}
        for group in optimizer.param_groups
    ]


def _places(optimizer: Optimizer) -> list[int]:
    """Give the addresses that a graph writes to; loading state makes new tensors."""
    return [
        tensor.data_ptr()
        for group in optimizer.param_groups
        for parameter in group["params"]
        for tensor in (parameter, *optimizer.state.get(parameter, {}).values())
        if isinstance(tensor, Tensor)
    ]
