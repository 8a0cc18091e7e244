"""The step that stays on the device makes the trainer's usual step, bit for bit on the CPU."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import ReduceLROnPlateau
from trainer_parts import (
    FEATURES,
    LOSS,
    MARK,
    infinite_gradient,
    macrobatches,
    network,
    same,
    samples,
    sgd,
    snapshot,
    trainer_of,
)

from gafscope.aggregation import GAF, AdaptiveGAF, HalvingGAF, Mean, RandomSkip, Visitor
from gafscope.errors import UserError
from gafscope.trainer import Trainer
from gafscope.trainer.on_device.decision import combine_on_device, decide_on_device
from gafscope.trainer.on_device.step import READ_EVERY

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": sgd,
    "dampened": lambda m: SGD(m.parameters(), 0.1, 0.9, dampening=0.5),
    "plain sgd": lambda m: SGD(m.parameters(), 0.1),
    "adam": lambda m: Adam(m.parameters(), 0.01, amsgrad=True),
    "adamw": lambda m: AdamW(m.parameters(), 0.01, weight_decay=0.1),
    "rmsprop": lambda m: RMSprop(m.parameters(), 0.01, momentum=0.5, centered=True),
}


def both(
    k: int = 3,
    steps: int = 40,
    batches: list[tuple[Tensor, Tensor]] | None = None,
    optimizer: Callable[[nn.Module], Optimizer] = sgd,
    scheduler: Callable[[Optimizer], Any] | None = None,
    dropout: float = 0.0,
    validate: Any = None,
    **settings: Any,
) -> tuple[Trainer, Trainer]:
    """Train the usual way and on the device."""
    made = []
    for device_decision in (False, True):
        model = network(norm=True, dropout=dropout)
        moved_by = optimizer(model)
        options = {"record_layers_every": 0, "aggregator": GAF(0.9), "microbatches": k} | settings
        trainer = trainer_of(
            model,
            moved_by,
            scheduler=None if scheduler is None else scheduler(moved_by),
            device_decision=device_decision,
            **options,
        )
        data = macrobatches(40, k) if batches is None else batches
        trainer.history = trainer.fit(data, steps, validate=validate)  # type: ignore[attr-defined]
        made.append(trainer)
    assert made[0]._device_step is None
    assert made[1]._device_step is not None
    return made[0], made[1]


def assert_alike(usual: Trainer, masked: Trainer) -> None:
    """Weights, statistics, optimizer and decisions bit for bit; distances as sums in another order.

    Inner products are float64 sums in both, but taken of other parts.
    """
    assert same(snapshot(usual), snapshot(masked))
    a, b = usual.history, masked.history  # type: ignore[attr-defined]
    assert list(a.columns) == list(b.columns)
    for name in a.columns.drop("seconds"):
        if name in ("distance_mean", "distance_to_sum", "grad_norm"):
            left, right = np.array(a[name].tolist()), np.array(b[name].tolist())
            np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-9)
        else:
            assert repr(a[name].tolist()) == repr(b[name].tolist()), name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_the_same_with_every_optimizer(name):
    steps = 100 if name in ("sgd", "adam") else 40
    usual, masked = both(optimizer=OPTIMIZERS[name], steps=steps)
    assert_alike(usual, masked)
    assert 0.1 < usual.history.stepped.mean() < 0.9


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("rule", [GAF(0.8), HalvingGAF(0.9), Mean()], ids=repr)
def test_training_is_the_same_with_every_rule_that_visits_in_order(k, rule):
    assert_alike(*both(k=k, aggregator=rule))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_norm": "all"},
        {"clip_norm": 0.1},
        {"gate": RandomSkip(0.5)},
        {"warmup_updates": 20},
        {"record_layers_every": 7},
        {"dropout": 0.3},
        {"precision": "bf16"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_training_is_the_same_with_every_setting(settings):
    assert_alike(*both(**settings))


def test_a_learning_rate_that_a_scheduler_lowers_is_followed():
    def scheduler(optimizer: Optimizer) -> ReduceLROnPlateau:
        return ReduceLROnPlateau(optimizer, mode="max", patience=0)

    usual, masked = both(steps=100, scheduler=scheduler, validate=samples(50, 5), validate_every=9)
    assert_alike(usual, masked)
    assert usual.history.lr.nunique() > 2


@pytest.mark.parametrize("loss", [LOSS, infinite_gradient])
def test_what_is_not_finite_is_left_out(loss):
    """Also in microbatches of which only the gradient is infinite."""
    batches = macrobatches(30, 3)
    for step, sample in ((4, 0), (5, 8), (9, 0), (9, 8), (9, 16), (12, 16)):
        batches[step][0][sample, 0] = MARK if loss is infinite_gradient else math.nan
    usual, masked = both(steps=30, batches=batches, loss=loss, batch_norm="all")
    assert [len(rows) for rows in usual.history.not_finite].count(0) == 26
    assert_alike(usual, masked)


def test_decisions_are_those_of_the_visitor():
    """With zero, opposed, cancelling and non-finite gradients, and for every way to fold."""
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for trial in range(200):
        rows = torch.randn(5, 3, generator=generator, dtype=torch.float64) + 0.5
        kinds = torch.randint(5, (5,), generator=generator)
        rows[kinds == 0] = 0.0
        rows[1:][kinds[1:] == 1] = -rows[0]
        rule = (GAF(0.8), GAF(1.0), HalvingGAF(0.9), Mean())[trial % 4]
        fold = rule.fold
        assert fold is not None
        matrix = rows @ rows.T
        spoilt = kinds == 2
        matrix[spoilt[:, None] | spoilt[None, :]] = math.nan
        rows[spoilt] = math.nan
        found = decide_on_device(fold, matrix)
        visitor, running = Visitor(fold, 5), torch.zeros(3, dtype=torch.float64)
        for row in rows:
            factors = visitor.visit(float(row @ row), float(row @ running))
            if factors is not None:
                running = factors[0] * running + factors[1] * row
        expected = visitor.decision()
        seen.add(int(expected.accepted.sum()))
        assert bool(found.step) == expected.step
        assert torch.equal(found.taken & found.step, expected.accepted)
        assert torch.equal(found.finite, expected.finite)
        torch.testing.assert_close(found.weights, expected.weights)
        torch.testing.assert_close(found.distances, expected.distances, equal_nan=True)
        if expected.step:
            update = combine_on_device(fold, found, rows)
            torch.testing.assert_close(update, running / visitor.divisor)
            torch.testing.assert_close(found.norm, update.norm())
    assert seen >= {0, 2, 3, 4, 5}


def test_a_step_asks_the_device_nothing(monkeypatch):
    batches = macrobatches(20, 2)
    trainer = trainer_of(
        network(norm=True),
        aggregator=GAF(0.9),
        clip_norm=1.0,
        record_layers_every=0,
        device_decision=True,
    )
    newest = None
    while newest is None or newest["step"] != trainer.step - 1 or trainer.updates == 0:
        newest, _ = trainer.advance(batches[trainer.step])
    trainer.advance(batches[trainer.step])  # the first on the device
    began = trainer.step

    def refuse(*_: Any) -> Any:
        raise AssertionError("the host waited for the device")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "nonzero", "is_nonzero"):
            patch.setattr(Tensor, name, refuse)
        for name in ("__bool__", "__float__", "__int__", "__index__", "__contains__"):
            patch.setattr(Tensor, name, refuse)
        for batch in batches[10:]:
            row, _ = trainer.advance(batch)
            assert row["step"] < began
    trainer.ends_at = trainer.step + 1
    row, _ = trainer.advance(batches[0])
    assert row["step"] == trainer.step - 1
    assert [row["step"] for row in trainer.rows] == list(range(trainer.step))
    assert 0 < sum(row["stepped"] for row in trainer.rows[began:]) < 11


def test_rows_are_read_back_in_time(tmp_path):
    """At the latest after READ_EVERY steps, at validations and checkpoints, and at the end."""
    settings = {"aggregator": Mean(), "record_layers_every": 0, "device_decision": True}
    trainer = trainer_of(network(), **settings)
    known = [trainer.advance(batch)[0]["step"] for batch in macrobatches(READ_EVERY + 3, 2)]
    assert known == [0] * READ_EVERY + [READ_EVERY] * 3
    trainer = trainer_of(
        network(), run_dir=tmp_path / "run", validate_every=10, checkpoint_every=7, **settings
    )
    history = trainer.fit(macrobatches(40, 2), 33, validate=samples(20))
    assert history.step.tolist() == list(range(33))
    assert history.validation_loss.notna().to_numpy().nonzero()[0].tolist() == [9, 19, 29]


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
    def fit(name: str, steps: int) -> Trainer:
        settings = {"record_layers_every": 0, "run_dir": tmp_path / name, "checkpoint_every": 1000}
        trainer = trainer_of(
            network(norm=True), aggregator=GAF(0.9), device_decision=True, **settings
        )
        trainer.history = trainer.fit(macrobatches(40, 2), steps)  # type: ignore[attr-defined]
        return trainer

    whole = fit("whole", 60)
    fit("parts", 23)
    parts = fit("parts", 60)
    assert same(snapshot(whole), snapshot(parts))
    left, right = (trainer.history.drop(columns="seconds") for trainer in (whole, parts))
    assert left.to_csv() == right.to_csv()


def test_other_rules_take_the_usual_step_and_the_log_says_so(caplog):
    with caplog.at_level(logging.INFO, "gafscope"):
        trainer = trainer_of(network(), aggregator=AdaptiveGAF(0.5), device_decision=True)
    assert trainer._device_step is None
    assert "AdaptiveGAF" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "gafscope"):
        trainer = trainer_of(network(), max_updates=3, device_decision=True)
    assert "max_updates" in caplog.text
    history = trainer.fit(macrobatches(10, 2), 10)
    assert history.stepped.sum() == 3


class Branching(nn.Module):
    """Uses its second layer only where the inputs say so."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.first(inputs)
        return self.second(outputs) if inputs[0, 0] > 0 else outputs


@pytest.mark.parametrize("late", [[1.0, -1.0], [1.0, 1.0]])
def test_parameters_that_come_and_go_are_refused(late):
    trainer = trainer_of(
        Branching(), aggregator=Mean(), record_layers_every=0, device_decision=True
    )
    batches = macrobatches(3, 2)
    for batch, signs in zip(batches, ([-1.0, -1.0], late, late), strict=True):
        batch[0][[0, 8], 0] = torch.tensor(signs)
    with pytest.raises(UserError, match="device_decision=False"):
        trainer.fit(batches, 3)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_cuda_graph_trains_as_the_usual_step_does(name):
    if not torch.cuda.is_available():
        pytest.skip("there is no NVIDIA GPU")
    histories, weights = [], []
    for device_decision in (False, True):
        model = network(norm=True).cuda()
        trainer = trainer_of(
            model,
            OPTIMIZERS[name](model),
            aggregator=GAF(0.9),
            record_layers_every=0,
            device_decision=device_decision,
        )
        histories.append(trainer.fit(macrobatches(40, 2), 100))
        weights.append([p.detach().cpu() for p in model.state_dict().values()])
        if device_decision:
            batch = tuple(part.cuda() for part in macrobatches(1, 2)[0])
            torch.cuda.set_sync_debug_mode("error")
            try:
                trainer.advance(batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert histories[0].accepted.tolist() == histories[1].accepted.tolist()
    assert 0.1 < histories[0].stepped.mean() < 0.9
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
