"""What the adapters' tests compare with: the same training by a plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from watched_loops import batches, network, sgd, state_of, train

from gafscope.gradients import Gramian, gramian, supervised
from gafscope.instruments import watch
from gafscope.records import Run

K, STEPS, CLIP = 4, 5, 0.5
DATA = batches(STEPS, K)
SAMPLES = [pair for step in DATA for part in step for pair in zip(*part, strict=True)]
MICROBATCH = len(DATA[0][0][0])


def make() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = network()
    optimizer = sgd(model)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8)


def trained() -> tuple[dict[str, Any], list[Gramian]]:
    """Train; give the last state, and the Gramians of all steps by `gramian`."""
    model, optimizer, scheduler = make()
    loss, found = supervised(nn.functional.cross_entropy), []
    for parts in DATA:
        batch = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        found.append(gramian(model, loss, batch, microbatches=K, engine="loop"))
        train(model, optimizer, [parts], scheduler=scheduler, clip=CLIP)
    return state_of(model, optimizer, scheduler), found


def filtered(rule: Any) -> tuple[dict[str, Any], Run]:
    """Train by a filter in a plain loop; some steps must be rejected and others not."""
    model, optimizer, scheduler = make()
    with watch(model, optimizer, every=1, filter=rule, scheduler=scheduler) as scope:
        train(model, optimizer, DATA, scheduler=scheduler, clip=CLIP)
    assert set(scope.run.scalars.stepped) == {True, False}
    return state_of(model, optimizer, scheduler), scope.run


def assert_gramians(run: Run, right: list[Gramian], scale: float, prefix: str = "") -> None:
    """Check every step's matrices.

    The loop's loss is `scale` times that of `gramian`, its parameters' names begin with `prefix`.
    """
    assert run.recorded_steps == list(range(len(right)))
    for step, one in enumerate(right):
        matrices = [(run.matrix(step), one.matrix)]
        matrices += [(run.matrix(step, prefix + name), one.layers[name]) for name in one.layers]
        largest = float(one.matrix.max()) * scale**2
        for found, matrix in matrices:
            wanted = matrix.numpy() * scale**2
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * largest)


def is_unhooked(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether no hook is left."""
    return not (
        any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
    )
