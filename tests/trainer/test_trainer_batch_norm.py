"""Running statistics follow the accepted microbatches, exactly as PyTorch moves them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from trainer_parts import (
    CLASSES,
    FEATURES,
    LOSS,
    MARK,
    infinite_gradient,
    macrobatches,
    network,
    same,
    trainer_of,
)

from gafscope.aggregation import GAF, Mean


def images(count: int, k: int, u: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(count * k, 1, 1, 1, 1, generator=generator) * 4
    inputs = (torch.randn(count * k, u, 2, 4, 4, generator=generator) + 1) * scales
    targets = torch.randint(CLASSES, (count, k * u), generator=generator)
    return list(zip(inputs.view(count, k * u, 2, 4, 4), targets, strict=True))


def convolutional(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES))


class Twice(nn.Module):
    """One layer that runs twice in a forward pass."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(2, 4, 3), norm
        self.head = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        values = self.norm(self.stem(inputs))
        return self.head(self.norm(values.exp().clamp(max=9)).flatten(1))


MODELS = {
    "batch norm": lambda: convolutional(nn.BatchNorm2d(4)),
    "momentum 1": lambda: convolutional(nn.BatchNorm2d(4, momentum=1.0)),
    "momentum 0.7": lambda: convolutional(nn.BatchNorm2d(4, momentum=0.7)),
    "cumulative": lambda: convolutional(nn.BatchNorm2d(4, momentum=None)),
    "twice": lambda: Twice(nn.BatchNorm2d(4)),
    "twice, cumulative": lambda: Twice(nn.BatchNorm2d(4, momentum=None)),
    "instance norm": lambda: convolutional(
        nn.InstanceNorm2d(4, momentum=0.3, track_running_stats=True)
    ),
    "instance norm, no momentum": lambda: convolutional(
        nn.InstanceNorm2d(4, momentum=None, track_running_stats=True)
    ),
    "no statistics": lambda: convolutional(nn.BatchNorm2d(4, track_running_stats=False)),
}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def native(model: nn.Module, batch: tuple[Tensor, Tensor], k: int, chosen: list[int]):
    """Give the statistics after PyTorch's own forwards of the chosen microbatches."""
    copied = copy.deepcopy(model).train()
    parts = batch[0].chunk(k)
    with torch.no_grad():
        for i in chosen:
            copied(parts[i])
    return buffers(copied)


def assert_statistics(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("every", [0, 1])
def test_when_all_are_accepted_statistics_move_as_in_pytorch(name, every):
    model = MODELS[name]()
    trainer = trainer_of(model, aggregator=Mean(), microbatches=3, record_layers_every=every)
    for batch in images(6, 3):
        expected = native(model, batch, 3, [0, 1, 2])
        trainer.advance(batch)
        assert_statistics(buffers(model), expected)


@pytest.mark.parametrize("name", MODELS)
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


class SometimesNormalised(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, inputs: Tensor) -> Tensor:
        values = self.stem(inputs)
        return self.head(torch.tanh(self.norm(values) if inputs[0, 0] > 0 else values))


def test_a_layer_that_some_microbatches_pass_by(monkeypatch):
    model, k = SometimesNormalised(), 4
    trainer = trainer_of(model, aggregator=GAF(0.8), microbatches=k)
    decisions = []
    monkeypatch.setattr(trainer.watchdog, "see", lambda _, decision: decisions.append(decision))
    for batch in macrobatches(20, k):
        before = copy.deepcopy(model)
        trainer.advance(batch)
        chosen = decisions[-1].accepted.nonzero().flatten().tolist()
        assert_statistics(buffers(model), native(before, batch, k, chosen))


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
