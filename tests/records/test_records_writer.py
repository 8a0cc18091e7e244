from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gafscope.errors import UserError
from gafscope.records import RunWriter, atomic_write, load_run

ROW = {
    "step": 1,
    "loss": 1.234567891,
    "accuracy": 0.5123,
    "accepted": 0.5,
    "stepped": True,
    "distance_mean": 0.9812345678901,
    "distance_to_sum": [math.nan, *(0.1234567890123 * i for i in range(7))],
    "grad_norm": 1.2345678,
    "lr": 0.01,
    "seconds": 0.01234,
    "validation_loss": None,
    "validation_accuracy": None,
    "noise_scale": math.inf,
    "rule": "GAF",
    "skipped": 3,
}


def new(folder: Path, **config: object) -> RunWriter:
    return RunWriter(folder, {"tau": 0.97, **config}, seed=0, device="cpu")


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the provenance, which holds the time."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name != "provenance.json"
    }


class Killed(Exception):
    """The process was killed: nothing after this moment happened."""


def die(writer: RunWriter) -> None:
    """Stop as a killed process does, without a flush."""
    writer._file.close()
    raise Killed


def train(folder: Path, steps: int, every: int, life: float = math.inf) -> None:
    """Record a run as a trainer does, with a checkpoint now and then, for `life` operations."""
    writer = new(folder, steps=20)
    spent = 0

    def tick() -> None:
        nonlocal spent
        spent += 1
        if spent > life:
            die(writer)

    checkpoint = folder / "checkpoint.pt"
    saved = json.loads(checkpoint.read_bytes()) if checkpoint.exists() else None
    writer.rewind(saved["position"] if saved else None)
    for step in range(saved["step"] if saved else 0, steps):
        draw = np.random.default_rng(step)
        tick()
        writer.scalars({"step": step, "loss": draw.normal(), "distances": [math.nan, 1.0]})
        tick()
        if step % 3 != 1:
            writer.gramians(step, draw.normal(size=(2, 2)), {"fc": draw.normal(size=(2, 2))})
        if step % every == every - 1:
            tick()
            position = writer.flush()
            tick()
            with atomic_write(checkpoint, "w") as file:
                json.dump({"step": step + 1, "position": position}, file)
    writer.flush()
    tick()
    writer.summary({"loss": 0.5, "bad": math.nan})
    writer.close()


@settings(max_examples=30, deadline=None)
@given(
    every=st.integers(1, 7),
    lives=st.lists(st.integers(0, 90), max_size=3),
    torn=st.binary(max_size=30),
)
def test_a_killed_run_goes_on_to_the_same_bytes(every: int, lives: list, torn: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        whole, cut = Path(place, "whole"), Path(place, "cut")
        train(whole, 20, every)
        for life in lives:
            try:
                train(cut, 20, every, life)
            except Killed:
                with open(cut / "scalars.jsonl", "ab") as file:
                    file.write(torn)
                atomic_write(cut / "matrices" / "part-00000099.parquet").__enter__()
        train(cut, 20, every)
        assert contents(cut) == contents(whole)


def test_a_prolonged_run_ends_as_a_long_one(tmp_path: Path) -> None:
    train(tmp_path / "short", 10, 5)
    train(tmp_path / "long", 20, 5)
    train(tmp_path / "short", 20, 5)
    assert contents(tmp_path / "short") == contents(tmp_path / "long")


def test_kill_minus_nine(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    code = f"""
import os, signal, sys
sys.path.insert(0, {here!r})
import test_records_writer as t
t.die = lambda _: os.kill(os.getpid(), signal.SIGKILL)
t.train(t.Path({str(tmp_path / "cut")!r}), 20, 6, 41)
"""
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == -signal.SIGKILL
    lines = (tmp_path / "cut" / "scalars.jsonl").read_bytes().count(b"\n")
    assert lines > 12, "rows after the last checkpoint reached the disk"
    train(tmp_path / "cut", 20, 6)
    train(tmp_path / "whole", 20, 6)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    writer = new(tmp_path)
    writer.scalars(ROW)
    assert load_run(tmp_path).scalars["loss"].tolist() == [ROW["loss"]]
    writer.close()


def test_a_row_costs_less_than_30_microseconds(tmp_path: Path) -> None:
    writer = new(tmp_path)
    costs = []
    for _ in range(50):
        start = time.perf_counter()
        for _ in range(100):
            writer.scalars(ROW)
        costs.append((time.perf_counter() - start) / 100)
    writer.close()
    assert min(costs) < 30e-6


def test_matrices_wait_for_a_flush_and_are_copied(tmp_path: Path) -> None:
    writer = new(tmp_path)
    gram = torch.eye(2, dtype=torch.float64, requires_grad=True)
    array = np.ones((2, 2))
    writer.gramians(4, gram, {"fc": array})
    array[:] = 7
    assert os.listdir(tmp_path / "matrices") == []
    assert writer.flush() == {"bytes": 0, "parts": 1}
    assert writer.flush() == {"bytes": 0, "parts": 1}
    run = load_run(tmp_path)
    np.testing.assert_array_equal(run.matrix(4), np.eye(2))
    np.testing.assert_array_equal(run.matrix(4, "fc"), np.ones((2, 2)))
    writer.close()


def test_close_flushes_and_may_be_repeated(tmp_path: Path) -> None:
    writer = new(tmp_path)
    writer.gramians(0, np.eye(2), {})
    writer.close()
    writer.close()
    assert load_run(tmp_path).recorded_steps == [0]


def test_steps_of_matrices_ascend(tmp_path: Path) -> None:
    writer = new(tmp_path)
    writer.gramians(3, np.eye(2), {})
    with pytest.raises(AssertionError, match="ascend"):
        writer.gramians(3, np.eye(2), {})
    writer.close()


def test_a_run_opened_again_must_be_rewound_first(tmp_path: Path) -> None:
    new(tmp_path).close()
    writer = new(tmp_path)
    with pytest.raises(AssertionError, match="rewound"):
        writer.scalars({"step": 0})
    writer.rewind(None)
    writer.scalars({"step": 0})
    writer.close()


def test_rewind_to_the_start_empties_the_record(tmp_path: Path) -> None:
    train(tmp_path, 20, 5)
    writer = new(tmp_path, steps=20)
    writer.rewind(None)
    writer.close()
    left = contents(tmp_path)
    assert sorted(left) == ["checkpoint.pt", "config.yaml", "scalars.jsonl"]
    assert left["scalars.jsonl"] == b""


@pytest.mark.parametrize("lost", ["scalars.jsonl", "matrices/part-00000000.parquet"])
def test_a_record_shorter_than_its_checkpoint(tmp_path: Path, lost: str) -> None:
    writer = new(tmp_path)
    writer.scalars({"step": 0})
    writer.gramians(0, np.eye(2), {})
    position = writer.flush()
    writer.close()
    (tmp_path / lost).unlink()
    writer = new(tmp_path)
    with pytest.raises(UserError, match="ends before its checkpoint"):
        writer.rewind(position)
    writer.close()


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    writer = new(tmp_path)
    writer.scalars(ROW)
    good = (tmp_path / "scalars.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) + 20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"scalars\.jsonl: .*last checkpoint .* are intact"):
            writer.scalars(ROW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "scalars.jsonl").read_bytes() == good
    writer.scalars(ROW)
    assert writer.flush()["bytes"] == 2 * len(good)
    writer.close()


def test_full_disk_at_a_flush_keeps_the_matrices(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = new(tmp_path)
    writer.gramians(0, np.eye(2), {})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(UserError, match=r"part-00000000\.parquet: No space left on device"):
            writer.flush()
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match="No space left on device"):
            writer.summary({})
    assert writer.flush()["parts"] == 1
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=r"scalars\.jsonl: No space left on device"):
        writer.flush()
    monkeypatch.undo()
    writer.close()
    assert load_run(tmp_path).recorded_steps == [0]


def test_a_scalars_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "demo" / "matrices").mkdir(parents=True)
    new(tmp_path / "demo").close()
    (tmp_path / "demo" / "scalars.jsonl").unlink()
    (tmp_path / "demo" / "scalars.jsonl").mkdir()
    with pytest.raises(UserError, match=r"Cannot write .*scalars\.jsonl: Is a directory"):
        new(tmp_path / "demo")


def test_the_summary_stays_until_the_run_goes_on(tmp_path: Path) -> None:
    writer = new(tmp_path)
    writer.scalars({"step": 0})
    position = writer.flush()
    writer.summary({"loss": 1})
    writer.close()
    again = new(tmp_path)
    again.rewind(position)
    assert load_run(tmp_path).summary == {"loss": 1}
    again.scalars({"step": 1})
    assert load_run(tmp_path).summary == {}
    again.close()


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    writer = new(tmp_path)
    writer.gramians(0, np.eye(2), {})
    writer.flush()
    writer.summary({"loss": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(UserError, match=r"Cannot write .*: Read-only file system"):
            writer.rewind(None)
        with pytest.raises(UserError, match=r"summary\.json: Read-only file system"):
            writer.scalars({"step": 0})
    writer.close()


def test_summary(tmp_path: Path) -> None:
    writer = new(tmp_path)
    writer.summary({"accuracy": np.float64(0.5), "loss": math.nan, "best": {"step": 3}})
    writer.close()
    assert load_run(tmp_path).summary == {"accuracy": 0.5, "loss": None, "best": {"step": 3}}
