"""Ranks that are killed, stopped, slow or started differently: all end, and one says why."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import Job, run_ranks
from rank_runs import equal, fitted, make
from torch import nn
from trainer_parts import LOSS, MARK, infinite_gradient, macrobatches, network, trainer_of

from gafscope.aggregation import GAF, EMAGate, Mean
from gafscope.errors import UserError
from gafscope.gradients import supervised
from gafscope.records import load_run
from gafscope.trainer import Trainer

STEPS = 60
QUICK = {"checkpoint_every": 8, "rank_timeout": 3.0}


def lines(folder: Path) -> int:
    path = folder / "scalars.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def slowed(_rank: int, folder: str, steps: int) -> dict[str, Any]:
    """A run that leaves time to be killed."""
    calls = iter(range(10**6))

    def criterion(outputs, targets, reduction="mean"):
        time.sleep(0.01 if next(calls) else 0)
        return nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    return fitted(make("much", Path(folder), loss=supervised(criterion), **QUICK), steps)


def wait_for(folder: Path, rows: int) -> None:
    end = time.monotonic() + 60
    while lines(folder) < rows and time.monotonic() < end:
        time.sleep(0.005)


def assert_all_gone(job: Job) -> None:
    assert not any(process.is_alive() for process in job.processes)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_and_the_next_start_ends_as_if_nothing_had_been(victim, tmp_path):
    whole = run_ranks(slowed, 2, str(tmp_path / "whole"), STEPS)
    folder = tmp_path / "run"
    job = Job(slowed, 2, str(folder), STEPS)
    wait_for(folder, random.Random(victim).randint(10, 40))
    job.processes[victim].kill()
    found = job.results()
    assert_all_gone(job)
    assert f"rank {victim} (last step " in found[1 - victim]
    assert "has gone. Every rank ends" in found[1 - victim]
    assert 10 <= lines(folder) < STEPS
    again = run_ranks(slowed, 2, str(folder), STEPS)
    for one, other in zip(again, whole, strict=True):
        assert equal(one["model"], other["model"]) and equal(one["optimizer"], other["optimizer"])
        assert equal(one["history"], other["history"])


def test_a_stopped_rank_is_named(tmp_path):
    folder = tmp_path / "run"
    # Somewhat more patient than the heartbeat, as under torchrun.
    job = Job(slowed, 4, str(folder), 10_000, timeout=6)
    wait_for(folder, 5)
    time.sleep(1.5)  # until each rank has been heard of
    os.kill(job.processes[2].pid, signal.SIGSTOP)
    stopped, started = lines(folder), time.monotonic()
    others = [job.processes[rank] for rank in (0, 1, 3)]
    while any(process.is_alive() for process in others):
        assert time.monotonic() - started < 45
        time.sleep(0.05)
    job.processes[2].kill()
    found = job.results()
    # Silent, or too slow, by what is noticed first.
    how = r"Rank 2 has (?:not answered|held up the others) for 3 s"
    assert len(re.findall(f"gafscope: {how}", job.said())) == 1
    for rank in (0, 1, 3):
        text = found[rank]
        assert re.search(f"UserError: {how}; its last step was ", text)
        step = int(text.split("its last step was ")[-1].split(".")[0])
        assert abs(step - stopped) <= 2


def hanging(rank: int, folder: str) -> None:
    calls = iter(range(10**6))

    def criterion(outputs, targets, reduction="mean"):
        if next(calls) == 10 and rank == 1:
            time.sleep(100)
        return nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    # Two calls a step.
    make("gaf", Path(folder), loss=supervised(criterion), **QUICK).fit(macrobatches(9, 4), 100)


def test_a_rank_that_hangs_is_named_though_it_is_alive(tmp_path):
    job = Job(hanging, 2, str(tmp_path / "run"), timeout=6)
    job.processes[0].join(40)
    job.processes[1].join(40)
    assert_all_gone(job)
    found = job.results()
    assert "Rank 1 has held up the others for 3 s; its last step was 4. It is stopped" in found[0]
    # It hangs where nothing else can end it.
    assert found[1] == "ended without a word"


def troubled(rank: int, folder: str, what: str) -> None:
    calls = iter(range(10**6))

    def criterion(outputs, targets, reduction="mean"):
        if next(calls) == 10 and rank == 1:
            raise RuntimeError("trouble") if what == "error" else UserError("my own mistake")
        return nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    make("gaf", Path(folder), loss=supervised(criterion), **QUICK).fit(macrobatches(9, 4), 100)


@pytest.mark.parametrize("what", ["error", "mistake"])
def test_an_error_on_one_rank_is_told_on_all(what, tmp_path):
    job = Job(troubled, 2, str(tmp_path / "run"), what)
    found = job.results()
    word = "Rank 1 failed with RuntimeError('trouble')" if what == "error" else "my own mistake"
    assert f"UserError: {word}" in found[0]
    assert ("trouble" if what == "error" else word) in found[1]
    assert job.said().count("gafscope: ") == 1


def terminated(rank: int, folder: str) -> Any:
    calls = iter(range(10**6))

    def criterion(outputs, targets, reduction="mean"):
        if next(calls) == 20 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return nn.functional.cross_entropy(outputs, targets, reduction=reduction)

    trainer = make("gaf", Path(folder), loss=supervised(criterion), **QUICK)
    try:
        trainer.fit(macrobatches(9, 4), 100)
    except SystemExit as end:
        return end.code, trainer.step
    return None


def test_a_signal_on_one_rank_ends_all_at_the_same_step(tmp_path):
    found = run_ranks(terminated, 2, str(tmp_path / "run"))
    assert found == [(143, 11), (143, 11)]
    assert len(load_run(tmp_path / "run").scalars) == 11
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 11


def poisoned(_rank: int, bad: str) -> dict[str, Any]:
    """Microbatch 2, which is rank 1's, has a NaN loss or an infinite gradient at some steps."""
    batches = macrobatches(12, 4)
    for step, (inputs, _) in enumerate(batches):
        if step % 3 == 1:
            inputs[17, 0] = float("nan") if bad == "nan" else MARK
    trainer = trainer_of(
        network(), aggregator=GAF(0.9), microbatches=4, loss=LOSS if bad == "nan" else spoilt
    )
    history = trainer.fit(batches, 24)
    return {"history": history.drop(columns="seconds"), "model": trainer.model.state_dict()}


def spoilt(model, batch):
    return infinite_gradient(model, batch)


@pytest.mark.parametrize("bad", ["nan", "infinite gradient"])
def test_what_is_not_finite_on_one_rank_is_rejected_on_all(bad):
    found, alone = run_ranks(poisoned, 2, bad), poisoned(0, bad)
    assert alone["history"]["not_finite"].map(len).sum() == 8
    for one in found:
        assert one["history"]["not_finite"].tolist() == alone["history"]["not_finite"].tolist()
        assert one["history"]["accepted"].tolist() == alone["history"]["accepted"].tolist()
        assert equal(dict(one["model"]), dict(alone["model"]))


def diverging(_rank: int) -> None:
    batches = [(inputs * float("inf"), labels) for inputs, labels in macrobatches(3, 2)]
    trainer_of(network(), aggregator=Mean()).fit(batches, 100)


def test_a_run_that_diverges_ends_on_all_ranks():
    for text in Job(diverging, 2).results():
        assert "UserError: Every loss or gradient has been NaN or infinite" in text


def different(rank: int, folder: str) -> list[str]:
    told = []
    for what in DIFFERENT:
        model = network(seed=rank if what == "weights" else 0)
        options = {"checkpoint_every": 3 + rank} if what == "setting" else {}
        if what == "model" and rank:
            model = nn.Sequential(model, nn.Linear(3, 3))
        batches = macrobatches(4, 2, seed=rank if what == "data" else 0)
        if what == "count" and rank:
            batches = [(inputs[:8], labels[:8]) for inputs, labels in batches]
        trainer = trainer_of(model, aggregator=Mean(), run_dir=f"{folder}/{what}", **options)
        with pytest.raises(UserError) as error:
            trainer.fit(batches, 8)
        told.append(str(error.value))
    return told


DIFFERENT = {
    "setting": "checkpoint_every is '3' on rank 0 but '4' on rank 1",
    "model": "model is 'Sequential (163 parameters)' on rank 0 but",
    "weights": "parameters are no longer the same: '0.weight'",
    "data": "first macrobatch (hash) is ",
    "count": "samples of a macrobatch is '16' on rank 0 but '8' on rank 1",
}


def test_ranks_that_were_started_differently_end(tmp_path):
    job = Job(different, 2, str(tmp_path))
    found = job.results()
    for text, words in zip(found[0], DIFFERENT.values(), strict=True):
        assert words in text
    assert job.said().count("gafscope: ") == len(DIFFERENT)


def full_disk(rank: int, folder: str) -> None:
    save = torch.save

    def failing(state, file):
        if state["step"] > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, file)

    torch.save = failing
    make("gaf", Path(folder), **QUICK).fit(macrobatches(9, 4), 100)


def test_a_full_disk_ends_all_ranks_and_the_checkpoint_before_serves(tmp_path):
    job = Job(full_disk, 2, str(tmp_path / "run"))
    found = job.results()
    for text in found:
        assert "No space left on device" in text
    assert job.said().count("gafscope: Cannot write ") == job.said().count("gafscope: ") == 1
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 8


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs):
        self.seen += len(inputs)
        return self.inner(inputs)


def refused(_rank: int) -> list[str]:
    cases: list[Any] = [
        lambda: trainer_of(network(), microbatches=3),
        lambda: trainer_of(network(), microbatches="samples"),
        lambda: trainer_of(network(), aggregator=EMAGate()),
        lambda: trainer_of(nn.parallel.DistributedDataParallel(network())),
        lambda: trainer_of(nn.Sequential(network(), nn.SyncBatchNorm(3))),
        lambda: trainer_of(Counting(), aggregator=Mean()).fit(macrobatches(2, 2), 2),
    ]
    told = []
    for case in cases:
        with pytest.raises(UserError) as error:
            case()
        told.append(str(error.value))
    return told


def test_what_ranks_cannot_share_is_refused():
    found = run_ranks(refused, 2)
    assert found[0] == found[1]
    for text, words in zip(
        found[0],
        [
            "microbatches=3 and there are 2 ranks; use 4",
            "one process only, but there are 2 ranks",
            "EMAGate needs whole gradients",
            "DistributedDataParallel ('')",
            "SyncBatchNorm ('1')",
            "buffer 'seen'",
        ],
        strict=True,
    ):
        assert words in text


def alone(_rank: int) -> bool:
    trainer: Trainer = trainer_of(network(), aggregator=Mean())
    trainer.fit(macrobatches(2, 2), 2)
    return trainer.ranks is None


def test_a_group_of_one_is_a_plain_run():
    assert run_ranks(alone, 1) == [True]
