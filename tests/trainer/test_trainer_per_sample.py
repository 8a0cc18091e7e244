"""`microbatches="samples"`: the trainer against hand-written loops over single samples."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trainer_parts import (
    CLASSES,
    FEATURES,
    LOSS,
    MARK,
    assign_gradient,
    cosine_distance,
    flat,
    gradients_of,
    infinite_gradient,
    network,
    same,
    samples,
    sgd,
    snapshot,
    trainer_of,
)

from gafscope.aggregation import GAF, Decision, HalvingGAF, Mean, RandomSkip, Yoked
from gafscope.gradients import gramian
from gafscope.records import load_run
from gafscope.trainer import Trainer
from gafscope.trainer.per_sample import PerSampleMacrobatch

N = 12
TAU = 0.8


def wide_batches(count: int, sizes: tuple[int, ...] = (N,)) -> list[tuple[Tensor, Tensor]]:
    """Float64 macrobatches whose sizes go round."""
    lengths = [sizes[i % len(sizes)] for i in range(count)]
    inputs, labels = samples(sum(lengths), 0)
    return list(zip(inputs.double().split(lengths), labels.split(lengths), strict=True))


def per_sample(model: nn.Module, optimizer: Any = None, **settings: Any) -> Trainer:
    return trainer_of(model, optimizer, microbatches="samples", **settings)


def algorithm_1(rows: list[Tensor]) -> tuple[Tensor | None, int]:
    total, count = rows[0], 1
    for row in rows[1:]:
        if cosine_distance(row, total) <= TAU:
            total, count = total + row, count + 1
    return (total / count, count) if count > 1 else (None, 0)


def halving(rows: list[Tensor]) -> tuple[Tensor | None, int]:
    running, count = rows[0], 1
    for row in rows[1:]:
        if cosine_distance(row, running) <= TAU:
            running, count = (running + row) / 2, count + 1
    return (running, count) if count > 1 else (None, 0)


class Longest:
    """A rule of the user's own: the longest half, weighted by length."""

    def __call__(self, gramian, /) -> Decision:
        norms = gramian.matrix.diagonal().sqrt()
        accepted = torch.zeros(gramian.k, dtype=torch.bool)
        accepted[norms.topk(gramian.k // 2).indices] = True
        weights = torch.where(accepted, norms, 0.0)
        none = torch.full((gramian.k,), math.nan, dtype=torch.float64)
        return Decision(weights / weights.sum(), accepted, True, none, torch.isfinite(norms))


def longest(rows: list[Tensor]) -> tuple[Tensor | None, int]:
    chosen = sorted(rows, key=lambda row: -float(row.norm()))[: len(rows) // 2]
    total = sum(float(row.norm()) for row in chosen)
    return sum(float(row.norm()) / total * row for row in chosen), len(chosen)


RULES = {
    "gaf": (GAF(TAU), algorithm_1),
    "halving": (HalvingGAF(TAU), halving),
    "own": (Longest(), longest),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("every", [0, 1])
def test_a_rule_equals_its_loop_over_samples(rule, every):
    weighting, by_hand = RULES[rule]
    batches = wide_batches(20, sizes=(N, 7))
    reference, model = network().double(), network().double()
    optimizer, accepted = sgd(reference), []
    for batch in batches:
        update, count = by_hand(gradients_of(reference, batch, len(batch[0])))
        accepted.append(count)
        if update is not None:
            assign_gradient(reference, update)
            optimizer.step()
    trainer = per_sample(model, aggregator=weighting, record_layers_every=every)
    history = trainer.fit(batches, steps=20)
    assert history["accepted"].tolist() == accepted
    assert [len(row) for row in history["distance_to_sum"]] == [N, 7] * 10
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-8, atol=1e-10)


def test_averaging_equals_plain_training():
    batches = wide_batches(20)
    reference, model = network().double(), network().double()
    optimizer = sgd(reference)
    for inputs, targets in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(inputs), targets).backward()
        optimizer.step()
    per_sample(model, aggregator=Mean()).fit(batches, steps=20)
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_as_many_microbatches_as_samples_is_the_same_training(clip):
    batches = wide_batches(20)
    single, parts = network().double(), network().double()
    settings = {"aggregator": GAF(TAU), "clip_norm": clip, "warmup_updates": 3}
    one = per_sample(single, **settings).fit(batches, steps=20)
    other = trainer_of(parts, microbatches=N, record_layers_every=1, **settings).fit(batches, 20)
    torch.testing.assert_close(flat(single), flat(parts), rtol=1e-10, atol=1e-12)
    assert 0 < one["accepted"].mean() < N
    assert sorted(one.columns) == sorted(other.columns)
    for name in ("accepted", "stepped", "not_finite", "lr"):
        assert one[name].tolist() == other[name].tolist(), name
    for name in ("loss", "accuracy", "distance_mean", "grad_norm"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-7, err_msg=name)
    for a, b in zip(one["distance_to_sum"], other["distance_to_sum"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


class Flipping(nn.Module):
    """Where the ghost engine loses track of the samples, so that vmap is taken."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.flip(0)).flip(0)


class Branching(nn.Module):
    """What ghost and vmap cannot follow, so that the loop is taken."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.low, self.high = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.high if inputs[0, 0].item() > 0 else self.low)(inputs)


@pytest.mark.parametrize(
    ("kind", "make"), [("ghost", network), ("vmap", Flipping), ("loop", Branching)]
)
def test_losses_and_accuracies_are_those_of_the_samples(kind, make):
    model = make().double()
    (batch,) = wide_batches(1)
    outputs = torch.cat([model(row[None]) for row in batch[0]])
    losses = nn.functional.cross_entropy(outputs, batch[1], reduction="none")
    right = (outputs.argmax(1) == batch[1]).double()
    parameters = dict(model.named_parameters())
    outcome = PerSampleMacrobatch(model, parameters, LOSS, nullcontext).run(
        batch, Mean(), step=0, layers=False
    )
    assert outcome.gramian.engine == kind
    assert outcome.losses == pytest.approx(losses.tolist())
    assert outcome.accuracies == right.tolist()
    row, _ = per_sample(model).advance(batch)
    assert row["loss"] == pytest.approx(float(losses.mean().detach()))
    assert row["accuracy"] == pytest.approx(float(right.mean()))
    assert 0 < row["accuracy"] < 1


def test_a_loss_without_classes_has_no_accuracy():
    def loss(model, batch):
        return model(batch[0]).square().sum(1)

    row, _ = per_sample(network().double(), loss=loss).advance(wide_batches(1)[0])
    assert math.isnan(row["accuracy"])
    assert math.isfinite(row["loss"])


def test_gramians_are_recorded_with_their_layers_only(tmp_path):
    batches, model = wide_batches(7), network().double()
    expected = gramian(model, LOSS, batches[0])
    trainer = per_sample(model, run_dir=tmp_path / "r", record_layers_every=3)
    history = trainer.fit(batches, steps=7)
    run = load_run(tmp_path / "r")
    assert run.recorded_steps == [0, 3, 6]
    assert run.layers == [name for name, _ in model.named_parameters()]
    assert history["distance_mean"].notna().all()
    np.testing.assert_allclose(run.matrix(0), expected.matrix, rtol=1e-10)
    for layer in run.layers:
        np.testing.assert_allclose(run.matrix(0, layer), expected.layers[layer], rtol=1e-10)
    assert run.config["microbatches"] == "samples"
    silent = per_sample(network().double(), run_dir=tmp_path / "s", record_layers_every=0)
    silent.fit(batches, steps=3)
    assert load_run(tmp_path / "s").recorded_steps == []


@pytest.mark.parametrize("kind", ["nan", "infinite gradient"])
def test_samples_that_are_not_finite_are_dropped_and_named(kind):
    batch, clean = wide_batches(1)[0], wide_batches(1)[0]
    batch[0][[2, 5], 0] = math.nan if kind == "nan" else MARK
    keep = [i for i in range(N) if i not in (2, 5)]
    loss = LOSS if kind == "nan" else infinite_gradient
    spoilt, model = network().double(), network().double()
    row, _ = per_sample(spoilt, aggregator=Mean(), loss=loss).advance(batch)
    per_sample(model, aggregator=Mean()).advance((clean[0][keep], clean[1][keep]))
    torch.testing.assert_close(flat(spoilt), flat(model), rtol=1e-12, atol=1e-14)
    assert row["not_finite"] == [2, 5]
    assert row["accepted"] == N - 2


@pytest.mark.parametrize("gate", [None, RandomSkip(1.0), Yoked([False] * 5)])
def test_a_skipped_step_changes_nothing(gate):
    model = network(dropout=0.3)
    rule = GAF(1e-9) if gate is None else Mean()
    trainer = per_sample(model, aggregator=rule, gate=gate)
    inputs, targets = samples(N)
    if gate is None:
        # Momentum from before could move the weights.
        per_sample(model, trainer.optimizer, aggregator=Mean()).advance((inputs, targets))
    before = snapshot(trainer)
    for _ in range(5):
        row, _ = trainer.advance((inputs, targets))
        assert not row["stepped"]
    assert same(snapshot(trainer), before)
    assert all(p.grad is None for p in model.parameters())


def test_unused_and_frozen_parameters_stay_where_they_are():
    model = network()
    model.append(nn.Identity())
    model[-1].register_parameter("idle", nn.Parameter(torch.ones(3)))
    model[0].bias.requires_grad_(False)
    bias = model[0].bias.clone()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.5)
    per_sample(model, optimizer, aggregator=Mean()).fit([samples(N)], steps=5)
    assert torch.equal(model[-1].idle, torch.ones(3))
    assert torch.equal(model[0].bias, bias)
    assert model[-1].idle not in optimizer.state


@pytest.mark.parametrize("norm", ["layer", "frozen batch"])
def test_networks_that_train_sample_by_sample(norm):
    class FrozenNorm(nn.BatchNorm1d):
        def train(self, mode: bool = True):
            return super().train(False)

    model = network()
    model.insert(1, nn.LayerNorm(16) if norm == "layer" else FrozenNorm(16))
    model.train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    history = per_sample(model, aggregator=Mean()).fit([samples(N)], steps=5)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert same(buffers, list(model.buffers()))
