"""Checkpoints that cannot be written, read or used."""

from __future__ import annotations

import errno
import os
import pickle
import random

import pytest
import torch
from trainer_parts import (
    LOSS,
    assert_same_scalars,
    flat,
    macrobatches,
    network,
    samples,
    trainer_of,
)

from gafscope.aggregation import Mean
from gafscope.errors import UserError
from gafscope.records import load_run
from gafscope.trainer.checkpoint import NAME, load_checkpoint, save_checkpoint


def run(folder, steps: int = 20, model=None, loss=LOSS):
    trainer = trainer_of(
        network() if model is None else model,
        aggregator=Mean(),
        loss=loss,
        run_dir=folder,
        checkpoint_every=5,
        config={"note": "the same for all"},
    )
    return trainer.fit(macrobatches(20, 2), steps), trainer


def full_disk(monkeypatch, after: int):
    """Make the checkpoints after the first few fail, as they do on a disk that is full."""
    save, calls = torch.save, []

    def failing(state, file):
        calls.append(1)
        if len(calls) > after:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, file)

    monkeypatch.setattr(torch, "save", failing)


def test_a_full_disk_leaves_the_previous_checkpoint_and_the_run_goes_on(tmp_path, monkeypatch):
    expected, whole = run(tmp_path / "whole")
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_disk(patch, after=3)
        with pytest.raises(UserError, match=r"checkpoint\.pt: No space left on device.*intact"):
            run(folder)
    assert load_checkpoint(folder)["step"] == 10
    # It was found out while the next steps were made.
    assert 15 <= len(load_run(folder).scalars) <= 20
    assert sorted(path.name for path in folder.iterdir()) == [
        NAME,
        "config.yaml",
        "matrices",
        "provenance.json",
        "scalars.jsonl",
    ]
    history, trainer = run(folder)
    assert_same_scalars(history, expected)
    assert torch.equal(flat(trainer.model), flat(whole.model))


def test_a_full_disk_at_the_very_start(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch, after=0)
        with pytest.raises(UserError, match="No space left"):
            run(tmp_path / "run")
    assert len(run(tmp_path / "run")[0]) == 20


def test_a_disk_that_is_full_inside_of_the_writer(tmp_path):
    """Torch hides the system's error behind one of its own; the message still names it."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self):
            pass

    with pytest.raises((OSError, RuntimeError)):
        torch.save({"step": 1, "x": torch.ones(10)}, Full())
    folder = tmp_path / "gone"
    with pytest.raises(UserError, match=r"Cannot write .*checkpoint\.pt"):
        save_checkpoint(folder, {"step": 1})


class Malicious:
    """Runs code where a pickle is loaded without care."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def damage(name: str, path, mark) -> None:
    good = path.read_bytes()
    match name:
        case "truncated":
            path.write_bytes(good[: len(good) // 2])
        case "one byte short":
            path.write_bytes(good[:-1])
        case "empty":
            path.write_bytes(b"")
        case "garbage":
            path.write_bytes(random.Random(0).randbytes(5000))
        case "text":
            path.write_text("step: 3\n")
        case "one bit":
            spot = good.index(torch.load(path)["model"]["0.weight"].numpy().tobytes()) + 10
            path.write_bytes(good[:spot] + bytes([good[spot] ^ 4]) + good[spot + 1 :])
        case "pickle":
            path.write_bytes(pickle.dumps({"step": 3, "model": Malicious(mark)}))
        case "malicious":
            torch.save({"step": 3, "model": Malicious(mark)}, path)
        case "other":
            torch.save([1, 2, 3], path)
        case "weights alone":
            torch.save(network().state_dict(), path)


@pytest.mark.parametrize(
    "name",
    [
        "truncated",
        "one byte short",
        "empty",
        "garbage",
        "text",
        "one bit",
        "pickle",
        "malicious",
        "other",
        "weights alone",
    ],
)
def test_a_damaged_checkpoint_is_an_error_and_nothing_in_it_runs(name, tmp_path):
    folder, mark = tmp_path / "run", tmp_path / "mark"
    run(folder, steps=5)
    rows = (folder / "scalars.jsonl").read_bytes()
    damage(name, folder / NAME, mark)
    with pytest.raises(UserError, match=r"Cannot read the checkpoint .*checkpoint\.pt: \S+"):
        run(folder)
    assert not mark.exists()
    assert (folder / "scalars.jsonl").read_bytes() == rows


def test_whatever_byte_is_hit_the_checkpoint_is_refused_or_the_same(tmp_path):
    save_checkpoint(tmp_path, {"step": 3, "model": {"w": torch.arange(50.0)}, "text": "a"})
    good = (tmp_path / NAME).read_bytes()
    draws, refused = random.Random(1), 0
    for _ in range(150):
        spot = draws.randrange(len(good))
        hit = good[:spot] + bytes([good[spot] ^ (1 << draws.randrange(8))]) + good[spot + 1 :]
        (tmp_path / NAME).write_bytes(draws.choice([hit, hit, hit[:spot]]))
        try:
            state = load_checkpoint(tmp_path)
        except UserError:
            refused += 1
        else:
            assert state["step"] == 3 and state["text"] == "a"
            assert torch.equal(state["model"]["w"], torch.arange(50.0))
    assert refused > 75


def test_no_checkpoint_is_no_error(tmp_path):
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("norm", [True, False])
def test_a_checkpoint_of_another_model_is_refused(norm, tmp_path):
    run(tmp_path / "run", steps=5)
    other = network(norm=norm)
    if not norm:
        other[2] = torch.nn.Linear(16, 4)
    with pytest.raises(UserError, match="does not fit this model, optimizer, scheduler or rule"):
        run(tmp_path / "run", model=other)


def test_a_checkpoint_that_lacks_something_is_refused(tmp_path):
    run(tmp_path / "run", steps=5)
    state = torch.load(tmp_path / "run" / NAME, weights_only=True)
    for name in ("optimizer", "best", "random", "updates", "batches"):
        torch.save({k: v for k, v in state.items() if k != name}, tmp_path / "run" / NAME)
        with pytest.raises(UserError, match=name):
            run(tmp_path / "run")


def test_numpy_scalars_in_the_state_are_read_back(tmp_path):
    import numpy as np

    for steps in (5, 10):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=np.float64(0.01))
        trainer = trainer_of(model, optimizer, aggregator=Mean(), run_dir=tmp_path / "run")
        history = trainer.fit(macrobatches(10, 2), steps, validate=samples(10))
    assert len(history) == 10
