"""An Accelerate script, written as its documentation writes it, and one more line."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from adapted_loops import (
    CLIP,
    MICROBATCH,
    SAMPLES,
    K,
    assert_gramians,
    filtered,
    is_unhooked,
    make,
    trained,
)
from torch import nn
from torch.utils.data import DataLoader
from watched_loops import same, state_of

from gafscope.aggregation import GAF
from gafscope.errors import UserError
from gafscope.instruments.accelerate import watch_prepared


def script(watched=None):
    """Run the script; `watched` are the options of the watch, None for none."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=K, cpu=True)
    bare = make()
    loader = DataLoader(SAMPLES, batch_size=MICROBATCH)
    model, optimizer, scheduler, loader = accelerator.prepare(*bare, loader)
    if watched is None:
        scope = contextlib.nullcontext()
    else:
        scope = watch_prepared(model, optimizer, every=1, scheduler=scheduler, **watched)
    with scope:
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    assert is_unhooked(*bare[:2])
    return state_of(*bare), scope


def test_the_script_is_measured_and_not_changed():
    right, gramians = trained()
    without, _ = script()
    state, scope = script({})
    assert same(without, state)
    assert same(right["0"], state["0"])
    assert_gramians(scope.run, gramians, scale=1 / K)


def test_a_filter_acts_as_in_a_plain_loop():
    rule = GAF(tau=0.6)
    right, run = filtered(rule)
    state, scope = script({"filter": rule})
    assert same([right["0"], right["1"]], [state["0"], state["1"]])
    assert scope.run.scalars.stepped.tolist() == run.scalars.stepped.tolist()


def test_what_was_not_prepared_is_refused():
    model, optimizer, _ = make()
    with pytest.raises(UserError, match=r"accelerator\.prepare returned, but was given SGD"):
        watch_prepared(model, optimizer)


def test_optimizers_whose_backend_steps_are_refused():
    kind = type("DeepSpeedOptimizerWrapper", (SimpleNamespace,), {})
    with pytest.raises(UserError, match="cannot see the steps of DeepSpeedOptimizerWrapper"):
        watch_prepared(nn.Linear(1, 1), kind(scaler=None))


def test_the_scaler_is_taken_along():
    model, optimizer, _ = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    prepared = SimpleNamespace(optimizer=optimizer, scaler=scaler)
    losses = [
        nn.functional.cross_entropy(model(inputs), targets) for inputs, targets in SAMPLES[:2]
    ]
    rows = [torch.autograd.grad(loss, [*model.parameters()], retain_graph=True) for loss in losses]
    with watch_prepared(model, prepared, every=1) as scope:
        for loss in losses:
            scaler.scale(loss).backward()
        scaler.step(optimizer)
    squares = [sum(float(part.square().sum()) for part in row) for row in rows]
    assert scope.run.matrix(0).diagonal() == pytest.approx(squares, rel=1e-5)
