"""A step that is rejected leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import StepLR
from trainer_parts import macrobatches, network, same, snapshot, trainer_of

from gafscope.aggregation import GAF, HalvingGAF, Mean, RandomSkip

OPTIMIZERS = {
    "momentum": lambda p: SGD(p, 0.1, 0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: AdamW(p, 0.01, weight_decay=0.5),
    "rmsprop": lambda p: RMSprop(p, 0.01, momentum=0.9, centered=True),
}


def agreeing(k: int):
    inputs, targets = macrobatches(1, 1, seed=5)[0]
    return inputs.repeat(k, 1), targets.repeat(k)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("rule", [GAF, HalvingGAF])
def test_rejected_step_changes_nothing(optimizer, k, every, rule):
    model = network(norm=True)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    trainer = trainer_of(
        model,
        optimizer,
        aggregator=rule(1e-3),
        microbatches=k,
        scheduler=StepLR(optimizer, 2, 0.5),
        record_layers_every=every,
    )
    for _ in range(3):
        row, _ = trainer.advance(agreeing(k))
        assert row["stepped"] and row["accepted"] == k
        assert all(p.grad is None for p in model.parameters())
    before = snapshot(trainer)
    for batch in macrobatches(5, k):
        row, _ = trainer.advance(batch)
        assert not row["stepped"]
        assert row["accepted"] == 0
    assert same(snapshot(trainer), before)
    assert all(p.grad is None for p in model.parameters())
    # It is alive still.
    row, _ = trainer.advance(agreeing(k))
    assert row["stepped"]
    assert not same(snapshot(trainer), before)


def test_a_closed_gate_changes_nothing_either():
    model = network(norm=True)
    trainer = trainer_of(model, aggregator=Mean(), gate=RandomSkip(1.0))
    before = snapshot(trainer)
    for batch in macrobatches(5, 2):
        row, _ = trainer.advance(batch)
        assert not row["stepped"]
    assert same(snapshot(trainer), before)
    assert all(p.grad is None for p in model.parameters())


def test_gradients_from_before_the_run_do_not_enter_it():
    def run(stale: bool):
        model = network()
        if stale:
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 100.0)
        trainer_of(model, aggregator=Mean()).fit(macrobatches(3, 2), steps=3)
        return dict(model.state_dict())

    assert same(run(True), run(False))


def test_the_training_mode_is_set_and_the_global_generator_left_alone():
    model = network(dropout=0.5).eval()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trainer_of(model, aggregator=Mean()).fit(macrobatches(3, 2), steps=3)
    assert torch.equal(torch.rand(3), expected)
    assert model.training


def test_each_microbatch_draws_its_own_dropout_mask():
    seen = []

    class Spy(nn.Module):
        def forward(self, values):
            seen.append(values.detach() != 0)
            return values

    model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), Spy(), nn.Linear(32, 3))
    trainer_of(model, aggregator=Mean()).fit([agreeing(2)], steps=1)
    assert len(seen) == 2
    assert not torch.equal(*seen)
