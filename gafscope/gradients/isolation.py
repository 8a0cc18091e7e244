"""Measure without a trace: whatever happens inside, the model is left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Keep running statistics, training mode, random state and the autocast cache as they are.

    Args:
        model: The model that is measured inside.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
        stack.enter_context(_kept_mode(model))
        stack.enter_context(_detached_statistics(model))
        stack.enter_context(_no_autocast_cache())
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Put all buffers back afterwards, whether they were written to, replaced or added.

    Around every forward pass, so that each starts from the same buffers whatever came before.
    Embeddings with a `max_norm`, whose forward pass rescales their weight, are put back as well.

    Args:
        model: The model that is run inside.
    """
    owners = [(module, dict(module._buffers)) for module in model.modules()]
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    rescaled = [m.weight for m in embeddings if m.max_norm is not None]
    kept = [(tensor, tensor.detach().clone()) for tensor in (*model.buffers(), *rescaled)]
    try:
        yield
    finally:
        for module, buffers in owners:
            module._buffers.clear()
            module._buffers.update(buffers)
        for tensor, value in kept:
            if not torch.equal(tensor, value):
                # Through .data: a graph that the caller has built may hold this tensor.
                tensor.data.copy_(value)


def seed_everything(model: nn.Module, seed: int) -> None:
    """Seed the CPU's random generator and those of the model's GPUs.

    Not `torch.manual_seed`: that would reseed every other accelerator too, now or when it is
    first used, and nobody would put its state back.

    Args:
        model: The model.
        seed: The seed.
    """
    torch.default_generator.manual_seed(seed)
    for device in _cuda_devices(model):
        torch.cuda.default_generators[device].manual_seed(seed)


def random_state(model: nn.Module) -> list[torch.Tensor]:
    """Give the states of the generators that `seed_everything` seeds.

    Args:
        model: The model.

    Returns:
        The states; they change when somebody draws.
    """
    devices = _cuda_devices(model)
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})


@contextmanager
def _kept_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
def _no_autocast_cache() -> Iterator[None]:
    """Autocast's cache of cast weights would outlive the transform that a weight belongs to."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
