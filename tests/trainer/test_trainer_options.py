"""Schedulers, clipping, precision, compilation, and settings that are refused."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from trainer_parts import (
    LOSS,
    assert_same_scalars,
    flat,
    gradients_of,
    macrobatches,
    network,
    same,
    samples,
    sgd,
    trainer_of,
)

from gafscope.aggregation import GAF, Mean, RandomSkip
from gafscope.errors import UserError
from gafscope.gradients import supervised

VALIDATION = samples(60, seed=77)


def test_a_scheduler_steps_once_an_update():
    model = network()
    optimizer = sgd(model, lr=1.0)
    trainer = trainer_of(
        model, optimizer, aggregator=GAF(0.8), scheduler=StepLR(optimizer, 3, gamma=0.5)
    )
    history = trainer.fit(macrobatches(40, 2), steps=40)
    before = history["stepped"].cumsum() - history["stepped"]
    assert 6 < trainer.updates < 36
    # The row tells the rate that its own update was made with.
    assert history["lr"].tolist() == [0.5 ** (count // 3) for count in before]


def plateau_run(gate=None, mode="max", **settings):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.0)
    scheduler = ReduceLROnPlateau(optimizer, mode=mode, factor=0.5, patience=0, eps=0)
    optimizer.param_groups[0]["lr"] = 1e-12
    trainer = trainer_of(
        model,
        optimizer,
        aggregator=Mean(),
        gate=gate,
        scheduler=scheduler,
        validate_every=5,
        **settings,
    )
    return trainer, trainer.fit(macrobatches(40, 2), steps=40, validate=VALIDATION)


def test_plateau_steps_at_validations():
    trainer, history = plateau_run()
    # Nothing improves after the first validation, so each later one halves the rate.
    assert trainer.scheduler.last_epoch == 8
    expected = [0 if step < 10 else step // 5 - 1 for step in range(40)]
    assert np.round(-np.log2(history["lr"] / 1e-12)).astype(int).tolist() == expected


@pytest.mark.parametrize("mode", ["max", "min"])
def test_plateau_does_not_step_while_the_model_stays_as_it_is(mode):
    class Until:
        def opens(self, step: int) -> bool:
            return step < 12

    trainer, history = plateau_run(gate=Until(), mode=mode)
    # Validations after steps 4, 9 and 14 saw a changed model; five more saw the same one.
    assert history["stepped"].sum() == 12
    assert trainer.scheduler.last_epoch == 3


def test_plateau_in_mode_min_looks_at_the_loss():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.3)
    scheduler = ReduceLROnPlateau(optimizer, mode="min", patience=100)
    trainer = trainer_of(
        model, optimizer, aggregator=Mean(), scheduler=scheduler, validate_every=10
    )
    history = trainer.fit(macrobatches(20, 2), steps=20, validate=VALIDATION)
    assert scheduler.best == history["validation_loss"].min()


def test_plateau_without_anything_to_look_at_is_an_error(tmp_path):
    def trainer(loss, folder):
        model = network()
        optimizer = sgd(model)
        scheduler = ReduceLROnPlateau(optimizer, mode="max")
        return trainer_of(
            model,
            optimizer,
            loss=loss,
            aggregator=Mean(),
            scheduler=scheduler,
            validate_every=1,
            run_dir=folder,
        )

    with pytest.raises(UserError, match="validate="):
        trainer(LOSS, tmp_path / "a").fit(macrobatches(5, 2), steps=5)
    assert not (tmp_path / "a").exists()

    def own(model, batch):
        return LOSS(model, batch)

    with pytest.raises(UserError, match="mode='min'"):
        trainer(own, None).fit([macrobatches(1, 1)[0]], steps=5, validate=VALIDATION)


@pytest.mark.parametrize("every", [0, 1])
def test_clipping_comes_after_aggregation(every):
    clip = 0.05
    batch = macrobatches(1, 4)[0]
    model, reference = network(), network()
    trainer = trainer_of(
        model,
        SGD(model.parameters(), 1.0),
        aggregator=Mean(),
        microbatches=4,
        clip_norm=clip,
        record_layers_every=every,
    )
    start = flat(model)
    row, _ = trainer.advance(batch)
    mean = torch.stack(gradients_of(reference, batch, 4)).mean(0)
    assert float(mean.norm()) > 2 * clip
    assert row["grad_norm"] == pytest.approx(float(mean.norm()), rel=1e-5)
    torch.testing.assert_close(start - flat(model), mean * clip / mean.norm(), rtol=1e-4, atol=1e-7)


def test_clipping_leaves_short_updates_alone():
    def run(clip):
        model = network()
        trainer_of(model, aggregator=GAF(0.9), clip_norm=clip).fit(macrobatches(10, 2), steps=10)
        return flat(model)

    torch.testing.assert_close(run(1e6), run(None))


@pytest.mark.parametrize("every", [0, 1])
def test_bf16_stays_close_to_fp32(every):
    def run(precision: str):
        model = network(norm=True)
        trainer = trainer_of(
            model, aggregator=Mean(), precision=precision, record_layers_every=every
        )
        return model, trainer.fit(macrobatches(30, 2), steps=30, validate=VALIDATION)

    (half, by_half), (full, by_full) = run("bf16"), run("fp32")
    assert all(p.dtype == torch.float32 for p in half.parameters())
    assert not torch.equal(flat(half), flat(full))
    torch.testing.assert_close(flat(half), flat(full), rtol=0.05, atol=0.05)
    assert (by_half["loss"] - by_full["loss"]).abs().max() < 0.03
    assert (by_half["distance_mean"] - by_full["distance_mean"]).abs().max() < 0.1


@pytest.mark.parametrize("every", [0, 1])
def test_compiled_equals_uncompiled(every, monkeypatch):
    calls = []

    def counting(graph, _):
        calls.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compiler, backend=counting))

    def run(compiled: bool):
        model = network(norm=True)
        trainer = trainer_of(model, compile=compiled, record_layers_every=every)
        history = trainer.fit(macrobatches(20, 2), steps=20, validate=VALIDATION)
        return dict(model.state_dict()), history

    (fast, by_fast), (plain, by_plain) = run(True), run(False)
    assert calls
    assert same(fast, plain)
    assert_same_scalars(by_fast, by_plain)


def test_any_pytree_is_a_batch_and_any_loss_without_classes_will_do():
    model = nn.Linear(3, 1)

    def loss(net, batch):
        return (net(batch["x"]).squeeze(1) - batch["y"][0]).square().mean()

    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    batch = {"x": x, "y": [x.sum(1)]}
    trainer = trainer_of(
        model, SGD(model.parameters(), 0.1), loss=loss, aggregator=Mean(), microbatches=4
    )
    history = trainer.fit([batch], steps=60, validate=batch)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] / 10
    assert history["accuracy"].isna().all()


def test_best_weights_are_chosen_by_loss_where_there_is_no_accuracy():
    model = nn.Linear(3, 1)
    loss = supervised(nn.functional.mse_loss)
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    batch = (x, x.sum(1, keepdim=True))
    trainer = trainer_of(
        model, SGD(model.parameters(), 0.1), loss=loss, aggregator=Mean(), validate_every=10
    )
    history = trainer.fit([batch], steps=60, validate=batch)
    assert trainer.best.step == history["validation_loss"].idxmin() == 59


def test_a_learning_rate_may_be_a_tensor():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1))
    trainer = trainer_of(
        model, optimizer, aggregator=Mean(), scheduler=StepLR(optimizer, 1, gamma=0.5)
    )
    history = trainer.fit(macrobatches(4, 2), steps=4)
    assert history["lr"].tolist() == pytest.approx([0.1, 0.05, 0.025, 0.0125])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_norm": "none"}, "batch_norm must be one of accepted, all"),
        ({"on_stall": "raise"}, "on_stall"),
        ({"precision": "fp16"}, "fp32, bf16"),
        ({"microbatches": 0}, "at least 1"),
        ({"microbatches": 1}, "microbatches=1 leaves nothing to compare"),
        ({"microbatches": 2.0}, "whole number"),
        ({"warmup_updates": -1}, "warmup_updates"),
        ({"max_updates": 0}, "max_updates must be at least 1"),
        ({"validate_every": 0}, "validate_every"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"record_layers_every": -1}, "record_layers_every"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"clip_norm": math.nan}, "clip_norm must be positive"),
        ({"aggregator": GAF}, "aggregator must be a rule"),
        ({"aggregator": "gaf"}, "aggregator must be a rule"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words, tmp_path):
    with pytest.raises(UserError, match=words):
        trainer_of(network(), run_dir=tmp_path / "r", **settings)
    assert not (tmp_path / "r").exists()


def test_numpy_integers_are_whole_numbers(tmp_path):
    trainer = trainer_of(network(), microbatches=np.int64(2), seed=np.int64(1), run_dir=tmp_path)
    assert len(trainer.fit(macrobatches(3, 2), steps=np.int64(3))) == 3


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(UserError, match=r"The optimizer \(SGD\) holds parameters"):
        trainer_of(network(), sgd(network()))


def test_a_model_without_anything_to_train_is_refused():
    model = network()
    optimizer = sgd(model)
    with pytest.raises(UserError, match="no parameter that requires a gradient"):
        trainer_of(model.requires_grad_(False), optimizer)


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_steps_that_cannot_be_made_are_refused(steps, tmp_path):
    with pytest.raises(UserError, match="steps must be"):
        trainer_of(network(), run_dir=tmp_path / "r").fit(macrobatches(1, 2), steps)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "holds no macrobatch"),
        ([samples(15)], "microbatches=2 equal parts, but this one has 15 samples"),
        ([(torch.zeros(4, 6), torch.zeros(6).long())], "same, positive number"),
        ([(torch.zeros(4, 6), ["a"] * 4)], "holds a str"),
        ([torch.zeros(4, 6)], "batches \\(inputs, targets\\)"),
    ],
)
def test_macrobatches_that_do_not_fit_are_refused(batches, words):
    with pytest.raises(UserError, match=words):
        trainer_of(network()).fit(batches, steps=3)


def test_batch_norm_needs_two_samples_a_microbatch():
    with pytest.raises(UserError, match=r"'1' is a BatchNorm1d.*GroupNorm"):
        trainer_of(network(norm=True)).fit(macrobatches(1, 2, u=1), steps=1)
    trainer_of(network()).fit(macrobatches(1, 2, u=1), steps=1)


def test_a_loss_that_no_parameter_can_lower_is_refused():
    def loss(net, batch):
        return net(batch[0]).detach().sum(1)

    with pytest.raises(UserError, match="does not depend on any trainable parameter"):
        trainer_of(network(), loss=loss).fit(macrobatches(1, 2), steps=1)


def test_a_loss_of_a_wrong_shape_is_refused():
    def loss(net, batch):
        return net(batch[0])

    with pytest.raises(UserError, match=r"shape \(8, 3\)"):
        trainer_of(network(), loss=loss).fit(macrobatches(1, 2), steps=1)


def test_random_skip_beside_a_filter_is_recorded_as_a_skip():
    trainer = trainer_of(network(), aggregator=GAF(2.0), gate=RandomSkip(1.0))
    history = trainer.fit(macrobatches(3, 2), steps=3)
    assert history["accepted"].tolist() == [2] * 3
    assert not history["stepped"].any()
    assert history["grad_norm"].isna().all()
