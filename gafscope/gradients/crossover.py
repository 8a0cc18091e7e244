"""Where one engine overtakes another on a GPU: timed once for a model, then remembered.

On a processor the crossover is the same everywhere, about 16 samples a microbatch. On a GPU it
depends on the device and the network: a loop of small microbatches waits for kernel launches, and
vectorised engines pay for rows that fall out of the caches.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gafscope.gradients.problem import Problem

# So many microbatches tell the engines apart, whatever k is.
_TIMED = 16
# The first call plans, compiles and fills the allocator's cache.
_CALLS = 3
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[str]]] = weakref.WeakKeyDictionary()


def fastest_first(
    problem: Problem, names: Sequence[str], measure: Callable[[Problem, str], object]
) -> list[str]:
    """Put the engine first that is fastest on this model, here, at this size of microbatches.

    Args:
        problem: The measurement.
        names: Engines that may do it, in the order to try them in where nothing is known; the
            last one takes any model.
        measure: Called with a smaller measurement and an engine's name.

    Returns:
        Engines that failed, so that they fail again and the reason is told as usual; then the
        fastest one, then the others in their order, up to the last.
    """
    device = next(iter(problem.parameters.values())).device
    shapes = [(leaf.shape[2:], leaf.dtype) for leaf in pytree.tree_leaves(problem.batch)]
    k = min(problem.k, _TIMED)
    key = (*names, device, k, problem.u, str(shapes), problem.model.training)
    known = _KNOWN.setdefault(problem.model, {})
    if key not in known:
        part = replace(problem, batch=problem.microbatches(0, k), k=k)
        seconds: dict[str, float] = {}
        failed: list[str] = []
        for name in names:
            try:
                seconds[name] = min(_timed(part, name, measure, device) for _ in range(_CALLS))
            except (RuntimeError, MemoryError, ValueError):
                failed.append(name)
        fastest = sorted(seconds, key=seconds.__getitem__)[:1]
        known[key] = [*(name for name in failed if name != names[-1]), *fastest]
    order = [*known[key], *(name for name in names if name not in known[key])]
    # Nothing is tried after the engine that takes any model.
    return order[: order.index(names[-1]) + 1]


def _timed(
    problem: Problem, name: str, measure: Callable[[Problem, str], object], device: torch.device
) -> float:
    _wait(device)
    started = time.perf_counter()
    measure(problem, name)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
