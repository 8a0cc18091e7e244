"""Runs with `microbatches="samples"`: what is refused, resumed, told and how precise they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset
from trainer_parts import (
    CLASSES,
    FEATURES,
    assert_same_scalars,
    flat,
    network,
    same,
    samples,
    trainer_of,
)

from gafscope.aggregation import GAF, Mean
from gafscope.errors import UserError
from gafscope.records import load_run
from gafscope.trainer import Trainer

N = 12


def per_sample(model: nn.Module, optimizer: Any = None, **settings: Any) -> Trainer:
    return trainer_of(model, optimizer, microbatches="samples", **settings)


class WithInstanceNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm1d(2, track_running_stats=True)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.norm(inputs.view(-1, 2, FEATURES // 2)).flatten(1))


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (network(norm=True), {}, r"BatchNorm in training mode do not exist.*'1' is a BatchNorm1d"),
        (WithInstanceNorm(), {}, r"'norm' \(InstanceNorm1d\).*track_running_stats=False"),
        (network(), {"compile": True}, "compile=True does not go with microbatches='samples'"),
        (network(), {"microbatches": "sample"}, "a whole number or 'samples', but is 'sample'"),
    ],
    ids=["batch norm", "instance norm", "compile", "misspelt"],
)
def test_what_cannot_work_is_refused_before_anything_is_written(model, settings, words, tmp_path):
    model.eval()
    with pytest.raises(UserError, match=words):
        trainer_of(model, run_dir=tmp_path / "r", **{"microbatches": "samples"} | settings)
    assert not (tmp_path / "r").exists()
    assert not any(module.training for module in model.modules())


def test_a_last_macrobatch_of_one_sample():
    loader = DataLoader(TensorDataset(*samples(9)), batch_size=4)
    with pytest.raises(UserError, match=r"macrobatch of 1 sample.*drop_last=True"):
        per_sample(network(), aggregator=GAF(0.9)).fit(loader, steps=4)
    assert len(per_sample(network(), aggregator=Mean()).fit(loader, steps=6)) == 6


def test_bf16_stays_near_fp32():
    rows, ends = [], []
    for precision in ("fp32", "bf16"):
        model = network()
        history = per_sample(model, aggregator=Mean(), precision=precision).fit([samples(N)], 10)
        rows.append(history["loss"])
        ends.append(flat(model))
    assert not torch.equal(*ends)
    torch.testing.assert_close(*ends, rtol=0.05, atol=0.02)
    np.testing.assert_allclose(*rows, rtol=0.05)


def test_a_stall_with_macrobatches_of_several_sizes_is_told(caplog):
    trainer = per_sample(network(), aggregator=GAF(1e-6), on_stall="stop")
    with caplog.at_level("WARNING", "gafscope"):
        parts = (part.split([6, 4, 2]) for part in samples(N))
        history = trainer.fit(list(zip(*parts, strict=True)), steps=400)
    assert len(history) == 200
    assert "were all rejected" in caplog.text


def make(folder: Path | None, **settings: Any) -> Trainer:
    model = network(dropout=0.3)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    options = {
        "aggregator": GAF(0.85),
        "scheduler": ReduceLROnPlateau(optimizer, mode="max", factor=0.8, patience=0),
        "run_dir": folder,
        "validate_every": 4,
        "checkpoint_every": 7,
        "record_layers_every": 3,
    }
    return per_sample(model, optimizer, **options | settings)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*samples(40)), batch_size=N, shuffle=True)


class Breaking:
    """A source that fails at one of its macrobatches."""

    def __init__(self, at: int):
        self.left = at

    def __iter__(self):
        for batch in loader():
            if not self.left:
                raise RuntimeError("trouble")
            self.left -= 1
            yield batch


def test_an_interrupted_run_ends_as_a_whole_one(tmp_path):
    validation = samples(50, seed=3)
    whole = make(tmp_path / "whole")
    whole.fit(loader(), steps=20, validate=validation)
    for at in (6, 13, 17):
        with pytest.raises(RuntimeError, match="trouble"):
            make(tmp_path / "parts").fit(Breaking(at), steps=20, validate=validation)
    parts = make(tmp_path / "parts")
    parts.fit(loader(), steps=20, validate=validation)
    one, other = load_run(tmp_path / "whole"), load_run(tmp_path / "parts")
    assert_same_scalars(one.scalars, other.scalars)
    assert same(dict(whole.model.state_dict()), dict(parts.model.state_dict()))
    assert one.recorded_steps == other.recorded_steps
    for step in one.recorded_steps:
        np.testing.assert_array_equal(one.matrix(step), other.matrix(step))
    assert one.scalars["stepped"].sum() > 5
    assert one.scalars["accepted"].max() < N
