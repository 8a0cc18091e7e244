"""The bytes that a computation moves, counted operation by operation.

An operation reads each of its operands once and writes its result once; views move nothing.
Caches make this an upper bound of what reaches the memory, for all contenders alike.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gafscope.analyses.cost_cases import Case
from gafscope.gradients.isolation import untouched

PARTS: dict[str, tuple[str, ...]] = {
    "convolutions": ("conv",),
    "attention": ("scaled_dot_product",),
    "batched products": ("bmm", "baddbmm"),
    "matrix products": ("mm", "addmm", "matmul", "mv", "dot"),
    "norms": ("norm",),
    "copies": ("copy", "clone", "cat", "stack", "pad", "index", "gather", "im2col", "fill", "zero"),
}
"""Part -> what the names of its operations hold; the first part that fits counts."""
OTHER = "other operations"


def part_of(operation: str) -> str:
    """Tell which part an operation of torch belongs to.

    Args:
        operation: Its name, such as "aten::addmm".

    Returns:
        One of `PARTS`, or "other operations" (sums, activations, softmax ...).

    Example:
        >>> part_of("aten::bmm"), part_of("aten::relu")
        ('batched products', 'other operations')
    """
    name = operation.split("::")[-1]
    for part, words in PARTS.items():
        # The short names of products are in many words.
        exact = part.endswith("products")
        if any(name.strip("_") == word if exact else word in name for word in words):
            return part
    return OTHER


@final
class Traffic(TorchDispatchMode):
    """Counts bytes while it is entered.

    Attributes:
        bytes: Part -> bytes read and written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = _storages((args, kwargs)), _storages(result)
        # A view's result is its operand's memory; an in-place operation both reads and writes it.
        if not func.is_view and func._schema.name not in ("aten::detach", "aten::_unsafe_view"):
            moved = sum(read.values()) + sum(written.values())
            self.bytes[part_of(func._schema.name)] += moved
        return result


def _storages(tree: Any) -> dict[int, int]:
    """Give the distinct tensors of a tree: address -> bytes that an operation touches."""
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {t.data_ptr(): t.numel() * t.element_size() for t in tensors if t.numel()}


def traffic(call: Callable[[], Any]) -> Counter[str]:
    """Count the bytes that a call moves.

    Args:
        call: Run once.

    Returns:
        Part -> bytes.
    """
    with Traffic() as counter:
        call()
    return counter.bytes


def traffic_floor(case: Case, plain_bytes: float) -> float:
    """Count the least that a Gramian moves, over what one plain forward and backward moves.

    Forward pass, gradients of the inputs only, and each layer's input and output gradient read
    once more; no gradient of a weight is written or read.

    Args:
        case: Network and batch.
        plain_bytes: What `traffic` counts for the plain pass.

    Returns:
        The ratio.
    """
    factors: list[int] = []
    with untouched(case.model), _frozen(case.model, factors):
        counted = traffic(lambda: case.loss(case.model, case.batch).sum().backward())
    return (counted.total() + sum(factors)) / plain_bytes


@contextmanager
def _frozen(model: nn.Module, factors: list[int]) -> Iterator[None]:
    """Freeze the parameters; gradients flow from the first layer's output on."""

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = [t for t in pytree.tree_leaves((inputs, output)) if isinstance(t, Tensor)]
        factors.append(sum(t.numel() * t.element_size() for t in tensors))
        for tensor in pytree.tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.requires_grad_()

    layers = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [layer.register_forward_hook(record) for layer in layers]
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_()
        for handle in handles:
            handle.remove()


def profiled(call: Callable[[], Any]) -> dict[str, float]:
    """Tell where a call's time goes.

    Args:
        call: Run once under torch's profiler.

    Returns:
        Part -> share of the time of all operations, adding up to 1.
    """
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with _quiet_profiler(), torch.profiler.profile(activities=cpu) as profile:
        call()
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        if event.key.startswith("aten::"):
            spent[part_of(event.key)] += event.self_cpu_time_total
    return {part: time / spent.total() for part, time in spent.items()}


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep what torch's profiler says of its own start and stop off the terminal."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
