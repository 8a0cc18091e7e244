"""Runs of days: SIGTERM, several checkpoints, the best weights, checkpoints written on the side."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn
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
from gafscope.gradients import supervised
from gafscope.records import load_run
from gafscope.trainer.background import Background, detached_copy
from gafscope.trainer.checkpoint import BEST, NAME, load_checkpoint, save_checkpoint

VALIDATION = samples(60, seed=7)


def run(folder, steps: int = 20, loss=LOSS, validate=None, **settings):
    settings = {"checkpoint_every": 4, "config": {"note": "the same"}} | settings
    trainer = trainer_of(network(), aggregator=Mean(), loss=loss, run_dir=folder, **settings)
    history = trainer.fit(macrobatches(20, 2), steps, validate=validate)
    return history, trainer


def kept_steps(folder) -> list[int]:
    return [int(path.stem.split("-")[1]) for path in folder.glob("checkpoint-*.pt")]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pt"))


def on_call(number: int, action):
    """Cross-entropy that does something at one of its calls."""
    calls = iter(range(1, 10**6))

    def criterion(outputs, targets, reduction="mean"):
        if next(calls) == number:
            action()
        return nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    return supervised(criterion)


def send(*signals):
    return lambda: [os.kill(os.getpid(), number) for number in signals]


@pytest.mark.parametrize("signals", [["TERM"], ["TERM", "TERM"], ["INT", "TERM"]])
def test_sigterm_completes_the_step_and_writes_a_checkpoint(signals, tmp_path):
    expected, whole = run(tmp_path / "whole")
    folder = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    sent = [getattr(signal, f"SIG{name}") for name in signals]
    with pytest.raises(SystemExit) as end:
        run(folder, loss=on_call(13, send(*sent)))
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert torch.load(folder / NAME, weights_only=True)["step"] == 7
    assert len(load_run(folder).scalars) == 7
    history, trainer = run(folder)
    assert_same_scalars(history, expected)
    assert torch.equal(flat(trainer.model), flat(whole.model))


def test_a_terminated_command_says_so_once_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "gafscope", "train", "--threads", "1", "--no-progress"]
    command += ["--run-dir", str(tmp_path / "run"), "--model-options", "hidden", "8"]
    process = subprocess.Popen([*command, "--steps", "100000"], stderr=subprocess.PIPE, text=True)
    rows = tmp_path / "run" / "scalars.jsonl"
    while not (rows.exists() and rows.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    sent = time.time()
    process.terminate()
    message = process.communicate(timeout=120)[1]
    assert (tmp_path / "run" / NAME).stat().st_mtime - sent < 10
    assert process.returncode == 143
    assert message.count("gafscope: ") == 1 and "terminated" in message, message
    step = load_checkpoint(tmp_path / "run")["step"]
    assert step > 0 and step == len(load_run(tmp_path / "run").scalars)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_checkpoints_are_kept(keep, tmp_path):
    run(tmp_path / "run", keep_checkpoints=keep)
    earlier = [f"checkpoint-{step}.pt" for step in (12, 16)[2 - (keep - 1) :]]
    assert names(tmp_path / "run") == sorted([NAME, *earlier])
    for name in earlier:
        state = torch.load(tmp_path / "run" / name, weights_only=True)
        assert name == f"checkpoint-{state['step']}.pt"
    # Fewer are wanted from now on: the next checkpoint removes the rest.
    run(tmp_path / "run", steps=24, keep_checkpoints=1)
    assert names(tmp_path / "run") == [NAME]


def test_keeping_none_is_refused():
    with pytest.raises(UserError, match="keep_checkpoints must be at least 1, but is 0"):
        trainer_of(network(), keep_checkpoints=0)


@pytest.mark.parametrize("damage", ["half", "gone", "empty"])
@pytest.mark.parametrize("also", [False, True])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, also, tmp_path, caplog):
    expected, whole = run(tmp_path / "whole", validate=VALIDATION, validate_every=3)
    folder = tmp_path / "run"
    settings = {"keep_checkpoints": 3, "validate": VALIDATION, "validate_every": 3}
    run(folder, steps=18, **settings)
    for name in [NAME] + ["checkpoint-16.pt"] * also:
        path = folder / name
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 * (damage == "half")])
    history, trainer = run(folder, **settings)
    assert_same_scalars(history, expected)
    assert torch.equal(flat(trainer.model), flat(whole.model))
    told = [record.getMessage() for record in caplog.records if record.name == "gafscope"]
    taken = "checkpoint-12.pt" if also else "checkpoint-16.pt"
    assert len(told) == (0 if damage == "gone" else 1 + also)
    assert all(f"the one before it, {taken}" in message for message in told)
    # The damaged ones have been replaced or removed.
    kept = [torch.load(folder / name, weights_only=True) for name in names(folder) if name != BEST]
    assert sorted(state["step"] for state in kept) == sorted({20, *kept_steps(folder)})


def test_when_none_is_intact_the_run_ends(tmp_path):
    folder = tmp_path / "run"
    run(folder, keep_checkpoints=3)
    for name in names(folder):
        (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoint\.pt, nor any of the 2 before it: .*Remove"):
        run(folder, keep_checkpoints=3)


def test_a_kill_between_the_two_renamings_loses_nothing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, {"step": 5}, keep=2)
    replaced, replace = [], os.replace

    def dying(source, target):
        if replaced:
            raise SystemExit("killed")
        replaced.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(SystemExit):
            save_checkpoint(tmp_path, {"step": 9}, keep=2, previous=5)
    assert names(tmp_path) == ["checkpoint-5.pt"]
    assert load_checkpoint(tmp_path) == {"step": 5}
    save_checkpoint(tmp_path, {"step": 9}, keep=2, previous=5)
    assert load_checkpoint(tmp_path) == {"step": 9}
    assert names(tmp_path) == ["checkpoint-5.pt", NAME]


def test_the_best_weights_are_there_to_be_loaded(tmp_path):
    _, trainer = run(tmp_path / "run", validate=VALIDATION, validate_every=2)
    model = network(seed=1)
    model.load_state_dict(torch.load(tmp_path / "run" / BEST, weights_only=True))
    from gafscope.trainer import evaluate

    summary = load_run(tmp_path / "run").summary
    assert evaluate(model, LOSS, VALIDATION)["loss"] == summary["best_validation_loss"]
    assert summary["best_validation_accuracy"] > evaluate(network(), LOSS, VALIDATION)["accuracy"]
    trainer.best.restore(trainer.model)
    assert torch.equal(flat(model), flat(trainer.model))


def test_without_validation_there_are_no_best_weights(tmp_path):
    run(tmp_path / "run")
    assert names(tmp_path / "run") == [NAME]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The thread that writes waits for a later step: if training waited for it, none would come."""
    save, reached, writers = torch.save, threading.Event(), []

    def slow(state, file):
        writers.append(threading.current_thread())
        if state["step"] == 8:
            assert reached.wait(20), "no step was made meanwhile"
        save(state, file)

    monkeypatch.setattr(torch, "save", slow)
    # Each step calls the loss twice: this is in step 10.
    run(tmp_path / "run", loss=on_call(21, reached.set))
    assert threading.main_thread() not in writers
    assert not any(writer.is_alive() for writer in writers)


def test_what_is_written_is_the_state_of_its_step(tmp_path, monkeypatch):
    """However late it reaches the disk."""
    save, later = torch.save, threading.Event()

    def slow(state, file):
        if state["step"] == 4:
            later.wait(20)
            save(state, tmp_path / "late.pt")
        save(state, file)

    monkeypatch.setattr(torch, "save", slow)
    run(tmp_path / "run", loss=on_call(15, later.set))
    _, four = run(tmp_path / "four", steps=4)
    late = torch.load(tmp_path / "late.pt", weights_only=True)
    model = network(seed=1)
    model.load_state_dict(late["model"])
    assert torch.equal(flat(model), flat(four.model))
    momenta = [state["momentum_buffer"] for state in four.optimizer.state_dict()["state"].values()]
    saved = [state["momentum_buffer"] for state in late["optimizer"]["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(momenta, saved, strict=True))


def test_an_error_in_the_last_checkpoint_surfaces_before_fit_returns(tmp_path, monkeypatch):
    save = torch.save

    def failing(state, file):
        if state["step"] == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", failing)
        with pytest.raises(UserError, match="No space left on device"):
            run(tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")["step"] == 16
    assert not load_run(tmp_path / "run").summary
    assert len(run(tmp_path / "run")[0]) == 20


def test_the_error_of_the_run_is_not_hidden_by_that_of_a_checkpoint(tmp_path, monkeypatch):
    save = torch.save

    def failing(state, file):
        if state["step"] == 4:
            time.sleep(0.3)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, file)

    def trouble():
        raise RuntimeError("trouble")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(RuntimeError, match="trouble"):
        run(tmp_path / "run", loss=on_call(9, trouble))


def test_work_in_the_background_comes_one_by_one():
    background, order = Background(), []

    def work(name, seconds):
        time.sleep(seconds)
        order.append(name)

    background.start(lambda: work("slow", 0.05))
    background.start(lambda: work("quick", 0))
    background.wait()
    assert order == ["slow", "quick"]
    background.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.wait()
    background.wait()  # an error is told once


def test_a_copied_state_is_apart_from_the_original_and_keeps_tied_weights():
    weight = nn.Parameter(torch.ones(3))
    state = {"a": weight.detach(), "b": weight.detach(), "c": [weight * 2, {"n": 1, "e": []}]}
    copy = detached_copy(state)
    with torch.no_grad():
        weight.zero_()
    state["c"][1]["e"].append(1)
    assert copy["a"].tolist() == [1, 1, 1] and copy["c"][0].tolist() == [2, 2, 2]
    assert copy["a"].data_ptr() == copy["b"].data_ptr() and copy["c"][1] == {"n": 1, "e": []}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        run(disk / "run", steps=8)
        good = (disk / "run" / NAME).read_bytes()
        (disk / "filler").write_bytes(b"x" * (200_000 - len(good) - 30_000))
        with pytest.raises(UserError, match="No space left on device"):
            run(disk / "run", keep_checkpoints=20)
        (disk / "filler").unlink()
        assert load_checkpoint(disk / "run")["step"] >= 8
        history, _ = run(disk / "run")
        assert_same_scalars(history, run(tmp_path / "whole")[0])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(autouse=True)
def _told(caplog):
    caplog.set_level(logging.WARNING, "gafscope")
