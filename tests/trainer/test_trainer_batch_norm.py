"""Running statistics follow the accepted microbatches, exactly as PyTorch moves them."""

from __future__ import annotations

import copy

import pytest
import torch
from batch_norm_reference import MODELS, assert_statistics, buffers, images, native
from trainer_parts import (
    LOSS,
    MARK,
    infinite_gradient,
    macrobatches,
    network,
    same,
    trainer_of,
)

from gafscope.aggregation import GAF, Mean

# Their arithmetic is tested without a trainer.
NAMES = ["batch norm", "twice, cumulative", "sometimes", "instance norm"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("every", [0, 1])
def test_when_all_are_accepted_statistics_move_as_in_pytorch(name, every):
    model = MODELS[name]()
    trainer = trainer_of(model, aggregator=Mean(), microbatches=3, record_layers_every=every)
    for batch in images(6, 3):
        expected = native(model, batch, 3, [0, 1, 2])
        trainer.advance(batch)
        assert_statistics(buffers(model), expected)


@pytest.mark.parametrize("name", NAMES)
def test_only_accepted_microbatches_move_them(name, monkeypatch):
    model, k = MODELS[name](), 4
    trainer = trainer_of(model, aggregator=GAF(0.9), microbatches=k)
    decisions = []
    monkeypatch.setattr(trainer.watchdog, "see", lambda _, decision: decisions.append(decision))
    kinds = set()
    for batch in images(25, k):
        before = copy.deepcopy(model)
        trainer.advance(batch)
        chosen = decisions[-1].accepted.nonzero().flatten().tolist()
        assert_statistics(buffers(model), native(before, batch, k, chosen))
        if not chosen:
            assert same(buffers(model), buffers(before))
        kinds.add(len(chosen))
    assert len(kinds) >= 3


def test_all_moves_them_at_rejected_steps_too():
    model = network(norm=True)
    trainer = trainer_of(model, aggregator=GAF(0.0), microbatches=3, batch_norm="all")
    weights = [p.detach().clone() for p in model.parameters()]
    for batch in macrobatches(5, 3):
        expected = native(model, batch, 3, [0, 1, 2])
        row, _ = trainer.advance(batch)
        assert not row["stepped"]
        assert_statistics(buffers(model), expected)
    assert all(map(torch.equal, weights, model.parameters()))
    assert int(model[1].num_batches_tracked) == 15


def test_all_leaves_out_what_is_not_finite():
    """Also a microbatch of which only the gradient is infinite."""
    for loss in (LOSS, infinite_gradient):
        model = network(norm=True)
        trainer = trainer_of(
            model, loss=loss, aggregator=GAF(2.0), microbatches=3, batch_norm="all"
        )
        inputs, targets = macrobatches(1, 3)[0]
        expected = native(model, (inputs, targets), 3, [0, 2])
        inputs[10, 0] = MARK if loss is infinite_gradient else float("nan")
        row, _ = trainer.advance((inputs, targets))
        assert row["not_finite"] == [1]
        assert_statistics(buffers(model), expected)


def test_accepted_and_all_give_the_same_weights():
    """Statistics serve evaluation only; training normalises by the microbatch's own."""

    def run(batch_norm: str):
        model = network(norm=True)
        history = trainer_of(model, batch_norm=batch_norm).fit(macrobatches(30, 2), steps=30)
        return [p.detach() for p in model.parameters()], history["stepped"].sum(), buffers(model)

    (accepted, steps, few), (everything, _, many) = run("accepted"), run("all")
    assert 0 < steps < 30
    assert same(accepted, everything)
    assert int(few["1.num_batches_tracked"]) == 2 * steps
    assert int(many["1.num_batches_tracked"]) == 60


def test_statistics_are_finite_after_a_microbatch_with_nan_wherever_it_stands():
    for bad in range(3):
        model = network(norm=True)
        trainer = trainer_of(model, aggregator=Mean(), microbatches=3)
        inputs, targets = macrobatches(1, 3)[0]
        good = [i for i in range(3) if i != bad]
        expected = native(model, (inputs, targets), 3, good)
        inputs[bad * 8] = float("nan")
        trainer.advance((inputs, targets))
        assert_statistics(buffers(model), expected)
