"""Measure without a trace: whatever happens inside, the model is left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Keep buffers, running statistics, random state and the autocast cache as they are.

    Args:
        model: The model that is measured inside.
    """
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(
            torch.random.fork_rng(devices=sorted(d for d in devices if d is not None))
        )
        stack.enter_context(_detached_statistics(model))
        stack.enter_context(_restored_buffers(model))
        stack.enter_context(_no_autocast_cache())
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def _detached_statistics(model: nn.Module) -> Iterator[None]:
    """Take the running statistics of normalisation layers in training mode away.

    Such a layer then uses the statistics of its own microbatch and has none to change, which is
    also what vmap needs: it cannot write batched values into an unbatched buffer.
    """
    taken = [
        (module, name, module._buffers[name])
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training
        for name in _STATISTICS
        if module._buffers.get(name) is not None
    ]
    for module, name, _ in taken:
        module._buffers[name] = None
    try:
        yield
    finally:
        for module, name, buffer in taken:
            module._buffers[name] = buffer


@contextmanager
def _restored_buffers(model: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.detach().clone(), buffer._version) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value, version in kept:
                if buffer._version != version:
                    buffer.copy_(value)


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Autocast's cache of cast weights would outlive the transform that a weight belongs to."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
