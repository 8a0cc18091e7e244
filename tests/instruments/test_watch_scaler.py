"""GradScaler: rows without its factor, and its own skips."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from watched_loops import batches, network, same, sgd, state_of

from gafscope.aggregation import GAF
from gafscope.instruments import watch


def loop(model, optimizer, scaler, data, *, infinite_at=(), unscale=False):
    for step, parts in enumerate(data):
        for i, (inputs, labels) in enumerate(parts):
            loss = nn.functional.cross_entropy(model(inputs), labels) / len(parts)
            scaler.scale(loss * (math.inf if (step, i) in infinite_at else 1)).backward()
        if unscale:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def new():
    model = network()
    return model, sgd(model), torch.amp.GradScaler("cpu", init_scale=1024.0)


@pytest.mark.parametrize("memory", ["rows", "bf16"])
def test_the_factor_is_taken_out(memory):
    data, runs = batches(4, 3), []
    for enabled in (True, False):
        model, optimizer, _ = new()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        with watch(model, optimizer, every=1, scaler=scaler, memory=memory) as scope:
            loop(model, optimizer, scaler, data)
        runs.append(scope.run)
    for step in range(4):
        np.testing.assert_allclose(runs[0].matrix(step), runs[1].matrix(step), rtol=1e-5)
    assert runs[0].scalars.grad_norm.tolist() == pytest.approx(runs[1].scalars.grad_norm.tolist())


@pytest.mark.parametrize("unscale", [True, False])
@pytest.mark.parametrize("filter", [None, GAF(tau=2.0)])
def test_infinities_are_skipped_by_the_scaler_as_ever(filter, unscale):
    data, infinite_at = batches(5, 3), {(1, 0), (3, 2)}
    bare = new()
    loop(*bare, data, infinite_at=infinite_at, unscale=unscale)
    model, optimizer, scaler = things = new()
    with watch(model, optimizer, every=1, scaler=scaler, filter=filter) as scope:
        loop(*things, data, infinite_at=infinite_at, unscale=unscale)
    assert same(state_of(*bare), state_of(*things))
    scalars = scope.run.scalars
    assert scalars.stepped.tolist() == [True, False, True, False, True]
    assert scalars.not_finite.tolist() == [[], [0], [], [2], []]
    assert scaler.get_scale() == 256.0


@pytest.mark.parametrize("filter", [GAF(tau=0.0), GAF(tau=0.0, anchor="best")])
def test_a_rejected_macrobatch_moves_nothing_and_no_assertion_of_the_scalers_fails(filter):
    model, optimizer, scaler = things = new()
    loop(*things, batches(1, 3))
    before = [p.detach().clone() for p in model.parameters()]
    scope = watch(model, optimizer, scaler=scaler, filter=filter, microbatches=3)
    with scope:
        loop(*things, batches(3, 3, seed=1), unscale=True)
    assert not scope.run.scalars.stepped.any()
    assert same(before, [p.detach() for p in model.parameters()])
    assert scaler.get_scale() == 1024.0


@pytest.mark.parametrize("tau", [0.0, 2.0])
def test_two_optimizers_under_one_scaler(tau):
    model, _, scaler = new()
    both = [torch.optim.SGD(part.parameters(), 0.1, momentum=0.9) for part in (model[0], model[2])]
    before = [p.detach().clone() for p in model.parameters()]
    with watch(model, both, scaler=scaler, filter=GAF(tau=tau)):
        for inputs, labels in batches(1, 2)[0]:
            scaler.scale(nn.functional.cross_entropy(model(inputs), labels)).backward()
        for optimizer in both:
            scaler.step(optimizer)
        scaler.update()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [tau == 2.0] * 4
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in both)


def test_a_scaler_that_is_not_given_leaves_its_factor_in_and_its_skips_out():
    model, optimizer, _ = things = new()
    with watch(model, optimizer, every=1) as scope:
        loop(*things, batches(3, 2), infinite_at={(1, 0)})
    assert scope.run.recorded_steps == [0, 1]
    twin = new()
    with watch(twin[0], twin[1], every=1, scaler=twin[2]) as given:
        loop(*twin, batches(1, 2))
    np.testing.assert_allclose(scope.run.matrix(0), given.run.matrix(0) * 1024.0**2)


def test_filtering_is_the_same_with_and_without_a_scaler():
    states = []
    for enabled in (True, False):
        model, optimizer, _ = new()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        with watch(model, optimizer, scaler=scaler, filter=GAF(tau=0.7)) as scope:
            loop(model, optimizer, scaler, batches(8, 4), unscale=True)
        assert 0 < scope.run.scalars.accepted.mean() < 4
        states.append(state_of(model, optimizer))
    assert same(*states)


def test_skipped_steps_count_where_nothing_is_recorded():
    model, optimizer, scaler = things = new()
    with watch(model, optimizer, every=2, scaler=scaler) as scope:
        loop(*things, batches(4, 2), infinite_at={(1, 0)})
    assert scope.run.recorded_steps == [0, 2]
    assert scope.step == 4


def test_fused_optimizers_skip_by_themselves():
    model, _, scaler = new()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)
    with watch(model, optimizer, every=1, scaler=scaler) as scope:
        loop(model, optimizer, scaler, batches(3, 2), infinite_at={(1, 0)})
    assert scope.run.scalars.stepped.tolist() == [True, False, True]
