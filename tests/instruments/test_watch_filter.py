"""Filtering: the trainer's GAF to the last bit, inside a loop of somebody else's."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch import nn
from watched_loops import batches, network, same, sgd, state_of, train

from gafscope.aggregation import (
    GAF,
    AdaptiveGAF,
    HalvingGAF,
    KMeansDirections,
    Krum,
    Mean,
    SignAgreement,
)
from gafscope.gradients import supervised
from gafscope.instruments import watch
from gafscope.trainer import Trainer

LOSS = supervised(nn.functional.cross_entropy)


def trained(data, k, rule, *, norm, clip=None):
    """Train by the trainer."""
    model = network(norm=norm)
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4)
    macrobatches = [tuple(torch.cat(c) for c in zip(*parts, strict=True)) for parts in data]
    trainer = Trainer(model, LOSS, optimizer, rule, k, scheduler, clip_norm=clip, progress=False)
    history = trainer.fit(macrobatches, len(data))
    return state_of(model, optimizer, scheduler), history


def filtered(data, rule, *, norm, every=3, memory="rows", microbatches=None, **options):
    """Train by a loop under watch."""
    model = network(norm=norm)
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4)
    scope = watch(
        model,
        optimizer,
        filter=rule,
        scheduler=scheduler,
        every=every,
        memory=memory,
        microbatches=microbatches,
    )
    with scope:
        train(model, optimizer, data, scheduler=scheduler, **options)
    return state_of(model, optimizer, scheduler), scope.run


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize(
    "rule", [GAF(tau=0.6), GAF(tau=0.9), GAF(tau=2.0), Mean(), HalvingGAF(tau=0.6)]
)
def test_weights_are_the_trainers_bit_for_bit(rule, k, norm):
    data = batches(24, k)
    expected, history = trained(data, k, rule, norm=norm)
    got, run = filtered(data, rule, norm=norm)
    assert same(expected, got)
    assert run.scalars.accepted.tolist() == history.accepted.tolist()
    assert run.scalars.stepped.tolist() == history.stepped.tolist()
    if rule == GAF(tau=0.6):
        assert 0 < history.stepped.sum() < len(data)
        assert k == 2 or (history.accepted[history.stepped] < k).any()


def test_clipping_sees_the_filtered_gradient():
    data = batches(12, 4)
    expected, _ = trained(data, 4, GAF(tau=0.6), norm=False, clip=0.05)
    got, _ = filtered(data, GAF(tau=0.6), norm=False, clip=0.05)
    assert same(expected, got)


@pytest.mark.parametrize(
    "rule", [Krum(byzantine=0), KMeansDirections(), GAF(tau=0.6, anchor="best"), SignAgreement()]
)
def test_rules_that_need_all_rows_act_on_the_last_backward(rule):
    data = batches(12, 4)
    expected, history = trained(data, 4, rule, norm=False)
    got, run = filtered(data, rule, norm=False, microbatches=4)
    assert same(expected, got)
    assert run.scalars.accepted.tolist() == history.accepted.tolist()


def test_a_rule_that_learns_from_its_decisions_does_so_once_a_step():
    data = batches(12, 4)
    expected, history = trained(data, 4, AdaptiveGAF(), norm=False)
    got, run = filtered(data, AdaptiveGAF(), norm=False)
    assert same(expected, got)
    assert run.scalars.tau.tolist() == pytest.approx(history.tau.tolist(), rel=1e-7)


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("k", [3, 11])
def test_tau_2_changes_nothing_bit_for_bit(divide, k):
    states = []
    for rule in (None, GAF(tau=2.0)):
        model = network(norm=True)
        optimizer = sgd(model)
        if rule is None:
            train(model, optimizer, batches(6, k), divide=divide)
        else:
            with watch(model, optimizer, filter=rule, every=2):
                train(model, optimizer, batches(6, k), divide=divide)
        states.append(state_of(model, optimizer))
    assert same(*states)


@pytest.mark.parametrize("every", [1, 100])
def test_after_each_backward_grad_holds_the_filtered_value(every):
    # Rows (1, 0), (1, 1), (-1, 0), (1, -1): the third is rejected at tau = 0.9.
    rows = [[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [1.0, -1.0]]
    expected = [[1, 0], [2, 1], [2 * 3 / 2, 1 * 3 / 2], [3 * 4 / 3, 0]]
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with watch(nn.ParameterList([weight]), optimizer, filter=GAF(tau=0.9), every=every) as scope:
        (weight @ torch.tensor([0.5, 0.5])).backward()
        (weight @ torch.tensor([0.5, 0.5])).backward()
        optimizer.step()
        optimizer.zero_grad()
        for row, right in zip(rows, expected, strict=True):
            (weight @ torch.tensor(row)).backward()
            torch.testing.assert_close(weight.grad, torch.tensor(right, dtype=torch.float32))
        optimizer.step()
    assert scope.run.scalars.grad_norm.tolist() == pytest.approx([2**0.5, 4.0])
    assert scope.run.scalars.accepted.tolist() == [2, 3]
    assert scope.run.recorded_steps == ([0, 1] if every == 1 else [0])


@pytest.mark.parametrize("make", [sgd, lambda model: torch.optim.AdamW(model.parameters())])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_rejected_step_moves_nothing(make, set_to_none):
    model = network(norm=True)
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with watch(model, optimizer, filter=GAF(tau=2.0), scheduler=scheduler):
        train(model, optimizer, batches(2, 3), scheduler=scheduler)
    before = copy.deepcopy(state_of(model, optimizer, scheduler))
    options = {"scheduler": scheduler, "set_to_none": set_to_none, "clip": 1.0}
    with watch(model, optimizer, filter=GAF(tau=0.0), scheduler=scheduler) as scope:
        train(model, optimizer, batches(3, 3), **options)
        assert all(p.grad is None for p in model.parameters())
    assert same(before, state_of(model, optimizer, scheduler))
    assert scope.run.scalars.stepped.tolist() == [False] * 3
    assert scope.run.scalars.grad_norm.isna().all()
    assert scope.step == 3


def test_a_plateau_scheduler_is_held_back_and_keeps_its_class():
    model = network()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with watch(model, optimizer, filter=GAF(tau=0.0), scheduler=scheduler):
        train(model, optimizer, batches(1, 2))
        scheduler.step(1.0)
        assert scheduler.last_epoch == 0
        # A checkpoint in the middle holds no function of ours.
        assert "step" not in scheduler.state_dict()
    scheduler.step(1.0)
    assert scheduler.last_epoch == 1
    assert type(scheduler) is torch.optim.lr_scheduler.ReduceLROnPlateau


def test_a_scheduler_that_is_not_given_is_spoken_of(caplog):
    model = network()
    optimizer = sgd(model)
    with caplog.at_level(logging.WARNING, "gafscope"):
        watch(model, optimizer, filter=GAF())
        assert not caplog.records
        torch.optim.lr_scheduler.StepLR(optimizer, 4)
        watch(model, optimizer, filter=GAF())
    assert "cannot be prevented" in caplog.text


def test_rows_that_are_not_finite_are_dropped():
    data = batches(1, 3)[0]
    states = []
    for spoilt in (None, 0, 1, 3):
        model = network()
        optimizer = sgd(model)
        parts = list(data)
        if spoilt is not None:
            parts.insert(spoilt, (torch.full_like(data[0][0], math.nan), data[0][1]))
        with watch(model, optimizer, filter=GAF(tau=2.0), every=1) as scope:
            train(model, optimizer, [parts], divide=False, clip=1.0)
        states.append(state_of(model)["0"])
        assert scope.run.scalars.not_finite[0] == ([] if spoilt is None else [spoilt])
    for state in states[1:]:
        for name, tensor in states[0].items():
            torch.testing.assert_close(state[name], tensor)


def test_a_parameter_that_only_a_rejected_row_uses_is_left_alone():
    used, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(1))
    model = nn.ParameterList([used, other])
    optimizer = torch.optim.SGD([used, other], lr=1.0, weight_decay=0.5)
    with watch(model, optimizer, filter=GAF(tau=0.5), every=1):
        for row in ([1.0, 0.0], [1.0, 0.1]):
            (used @ torch.tensor(row)).backward()
        (used @ torch.tensor([-1.0, 0.0]) + 5 * other.sum()).backward()
        optimizer.step()
    assert other.item() == 1.0
    assert used[0].item() == pytest.approx(-3.0)


def test_running_statistics_of_forgotten_and_of_rejected_macrobatches():
    model = network(norm=True)
    optimizer = sgd(model)
    forgotten, rejected = batches(2, 2)
    with watch(model, optimizer, filter=GAF(tau=0.0)) as scope:
        for inputs, labels in forgotten:
            nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.zero_grad()
        before = copy.deepcopy(state_of(model))
        train(model, optimizer, [rejected])
    assert scope.run.scalars.stepped.tolist() == [False]
    assert same(before, state_of(model))


def test_two_optimizers_are_both_kept_from_stepping():
    model = network()
    both = [torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9, weight_decay=0.1)]
    both.append(torch.optim.AdamW(model[2].parameters()))
    before = copy.deepcopy(state_of(model, *both))
    with watch(model, both, filter=GAF(tau=0.0)):
        for inputs, labels in batches(1, 2)[0]:
            nn.functional.cross_entropy(model(inputs), labels).backward()
        for optimizer in both:
            optimizer.step()
    assert same(before, state_of(model, *both))


def test_an_observer_sees_the_loops_own_gradients_beside_a_filter():
    model = network()
    optimizer = sgd(model)
    with (
        watch(model, optimizer, filter=GAF(tau=0.3), every=1) as acting,
        watch(model, optimizer, every=1) as observing,
    ):
        train(model, optimizer, batches(4, 3))
    for step in range(4):
        assert (acting.run.matrix(step) == observing.run.matrix(step)).all()


def test_paused_the_loop_accumulates_plainly():
    model, plain = network(), network()
    with watch(model, sgd(model), filter=GAF(tau=0.0)) as scope:
        optimizer = scope._settings.optimizer
        scope.pause()
        train(model, optimizer, batches(3, 2))
    train(plain, sgd(plain), batches(3, 2))
    assert same(state_of(model), state_of(plain))


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_backward_with_a_graph_of_its_own_is_filtered_too():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with watch(nn.ParameterList([weight]), optimizer, filter=GAF(tau=0.5), every=1) as scope:
        for row in ([1.0, 0.0], [1.0, 0.2], [-1.0, 0.0]):
            (weight.square() @ torch.tensor(row)).backward(create_graph=True)
        torch.testing.assert_close(weight.grad.detach(), torch.tensor([4.0, 0.4]) * 3 / 2)
        weight.grad = weight.grad.detach()
        optimizer.step()
    assert scope.run.scalars.accepted[0] == 2
