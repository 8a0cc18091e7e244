"""What a run writes down at each step, against the same numbers computed by hand."""

from __future__ import annotations

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn
from torch.optim.lr_scheduler import StepLR
from trainer_parts import (
    LOSS,
    assert_same_scalars,
    cosine_distance,
    gradients_of,
    macrobatches,
    network,
    samples,
    sgd,
    trainer_of,
)

from gafscope.aggregation import GAF, Mean, RandomSkip
from gafscope.gradients import gramian
from gafscope.records import load_run
from gafscope.trainer import evaluate

COLUMNS = [
    "step",
    "loss",
    "accuracy",
    "accepted",
    "stepped",
    "distance_mean",
    "distance_to_sum",
    "not_finite",
    "grad_norm",
    "lr",
]


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("k", [2, 4])
def test_every_column_by_hand(every, k):
    model = network(norm=True)
    trainer = trainer_of(model, aggregator=GAF(0.8), microbatches=k, record_layers_every=every)
    stepped = 0
    for step, batch in enumerate(macrobatches(12, k)):
        by_hand = copy.deepcopy(model).train()
        row, _ = trainer.advance(batch)
        assert list(row) == [*COLUMNS, "seconds"]
        assert row["step"] == step

        losses, right = [], []
        for inputs, targets in zip(batch[0].chunk(k), batch[1].chunk(k), strict=True):
            outputs = by_hand(inputs)
            losses.append(nn.functional.cross_entropy(outputs, targets).item())
            right.append((outputs.argmax(1) == targets).float().mean().item())
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
        assert row["accuracy"] == pytest.approx(np.mean(right), rel=1e-6)

        rows = [g.double() for g in gradients_of(by_hand, batch, k)]
        total, count, visits = rows[0].clone(), 1, [math.nan]
        for gradient in rows[1:]:
            visits.append(cosine_distance(gradient, total))
            if visits[-1] <= 0.8:
                total, count = total + gradient, count + 1
        assert row["distance_to_sum"] == pytest.approx(visits, abs=1e-6, nan_ok=True)
        assert row["stepped"] is (count > 1)
        assert row["accepted"] == (count if count > 1 else 0)
        norm = float(total.norm()) / count if count > 1 else math.nan
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-5, nan_ok=True)
        pairs = [cosine_distance(rows[i], rows[j]) for i in range(k) for j in range(i)]
        known = k == 2 or every == 1
        mean = np.mean(pairs) if known else math.nan
        assert row["distance_mean"] == pytest.approx(mean, abs=1e-6, nan_ok=True)
        assert row["not_finite"] == []
        assert row["lr"] == 0.1
        assert 0 < row["seconds"] < 10
        stepped += row["stepped"]
    assert 0 < stepped < 12


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("every", [0, 4])
def test_memory_and_folder_hold_the_same(k, every, tmp_path):
    def run(folder):
        model = network(norm=True, dropout=0.2)
        optimizer = sgd(model)
        trainer = trainer_of(
            model,
            optimizer,
            aggregator=GAF(0.8),
            microbatches=k,
            scheduler=StepLR(optimizer, 3, 0.5),
            gate=RandomSkip(0.3),
            run_dir=folder,
            record_layers_every=every,
            validate_every=7,
        )
        return trainer.fit(macrobatches(30, k), steps=30, validate=samples(50, seed=3))

    in_memory, in_folder = run(None), run(tmp_path / "r")
    assert sorted(in_folder.columns) == sorted(
        [*COLUMNS, "seconds", "validation_loss", "validation_accuracy"]
    )
    assert_same_scalars(in_memory, in_folder)
    assert in_folder["stepped"].dtype == bool
    validated = in_folder.index[in_folder["validation_loss"].notna()]
    assert validated.tolist() == [6, 13, 20, 27]


def test_validations_are_of_the_weights_after_the_step():
    model, batch = network(), samples(50, seed=3)
    trainer = trainer_of(model, aggregator=Mean(), validate_every=1)
    for data in macrobatches(5, 2):
        row, _ = trainer.advance(data, batch)
        after = evaluate(model, LOSS, batch)
        assert row["validation_loss"] == after["loss"]
        assert row["validation_accuracy"] == after["accuracy"]


@pytest.mark.parametrize("k", [2, 3])
def test_recorded_matrices_are_the_gramians_of_those_macrobatches(k, tmp_path):
    batches, every = macrobatches(12, k), 5
    expected = {}
    model = network(norm=True)

    def loss(net, batch):
        return LOSS(net, batch)

    trainer = trainer_of(
        model,
        loss=loss,
        aggregator=GAF(0.9),
        microbatches=k,
        run_dir=tmp_path / "r",
        record_layers_every=every,
        checkpoint_every=4,
    )
    follower = trainer_of(
        network(norm=True), aggregator=GAF(0.9), microbatches=k, record_layers_every=every
    )
    for step, batch in enumerate(batches):
        expected[step] = gramian(follower.model.train(), LOSS, batch, k, engine="loop")
        follower.advance(batch)
    trainer.fit(batches, steps=12)
    run = load_run(tmp_path / "r")
    assert run.recorded_steps == (list(range(12)) if k == 2 else [0, 5, 10])
    assert run.layers == [name for name, _ in model.named_parameters()]
    for step in run.recorded_steps:
        matrix = expected[step].matrix.numpy()
        np.testing.assert_allclose(run.matrix(step), matrix, rtol=1e-5, atol=1e-6 * matrix.max())
        scale = np.sqrt(np.outer(matrix.diagonal(), matrix.diagonal()))
        assert np.abs((run.matrix(step) - matrix) / scale).max() < 1e-6
    for step in (0, 5, 10):
        for layer, value in expected[step].layers.items():
            np.testing.assert_allclose(run.matrix(step, layer), value.numpy(), rtol=1e-4, atol=1e-7)
        parts = sum(run.matrix(step, layer) for layer in run.layers)
        np.testing.assert_allclose(parts, run.matrix(step), rtol=1e-12)


def test_config_tells_what_the_run_was_made_with(tmp_path):
    model = network()
    optimizer = sgd(model)
    trainer = trainer_of(
        model,
        optimizer,
        aggregator=GAF(0.8),
        gate=RandomSkip(0.25),
        clip_norm=3.0,
        seed=5,
        run_dir=tmp_path / "r",
    )
    trainer.fit(macrobatches(3, 2), steps=3)
    config = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert config["model"] == "Sequential (163 parameters)"
    assert config["rule"] == "GAF(tau=0.8)"
    assert config["gate"] == "RandomSkip(rate=0.25, seed=0)"
    assert config["optimizer"].startswith("SGD(")
    for option in ("momentum=0.9", "weight_decay=0.001", "nesterov=True"):
        assert option in config["optimizer"]
    assert (config["lr"], config["steps"], config["seed"]) == (0.1, 3, 5)
    assert (config["microbatches"], config["clip_norm"]) == (2, 3.0)
    assert load_run(tmp_path / "r").provenance["seed"] == 5


def test_a_config_of_ones_own_is_written_as_given(tmp_path):
    trainer = trainer_of(network(), config={"note": "mine", "steps": 3}, run_dir=tmp_path / "r")
    trainer.fit(macrobatches(3, 2), steps=3)
    assert load_run(tmp_path / "r").config == {"note": "mine", "steps": 3}


def test_summary_tells_the_last_and_the_best_weights(tmp_path):
    validate, test = samples(80, seed=3), samples(80, seed=4)
    model = network()
    trainer = trainer_of(
        model,
        sgd(model, lr=1.0),
        aggregator=Mean(),
        validate_every=3,
        run_dir=tmp_path / "r",
        checkpoint_every=4,
    )
    kept = {}
    advance = trainer.advance

    def watching(*arguments):
        row, advice = advance(*arguments)
        kept[row["step"]] = copy.deepcopy(model)
        return row, advice

    trainer.advance = watching
    history = trainer.fit(macrobatches(30, 2), steps=30, validate=validate, test=test)
    summary = load_run(tmp_path / "r").summary
    best = int(history["validation_accuracy"].idxmax())
    assert best != 29
    assert summary["best_step"] == best
    assert (summary["status"], summary["steps"], summary["updates"]) == ("finished", 30, 30)
    for prefix, weights in (("", model), ("best_", kept[best])):
        for name, batch in (("validation", validate), ("test", test)):
            for key, value in evaluate(weights, LOSS, batch).items():
                assert summary[f"{prefix}{name}_{key}"] == value
    # Evaluating the best ones left the last ones in the model.
    for name, value in kept[29].state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_the_record_is_the_same_with_and_without_validation(tmp_path):
    """Looking must not touch the training: neither dropout nor running statistics."""

    def run(validate):
        model = network(norm=True, dropout=0.3)
        trainer = trainer_of(model, aggregator=GAF(0.9), validate_every=2)
        history = trainer.fit(macrobatches(20, 2), steps=20, validate=validate)
        return history[[*COLUMNS]]

    pd.testing.assert_frame_equal(run(None), run(samples(30, seed=1)))
