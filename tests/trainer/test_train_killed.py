"""SIGKILL at random moments: the run that is started again ends as one that was never killed."""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from trainer_parts import assert_same_scalars, same

from gafscope.records import load_run
from gafscope.trainer import TrainSettings, train

STEPS, KILLS = 600, 10


def work(folder: str) -> None:
    """What each process does; it knows nothing of the ones before it."""
    train(
        TrainSettings(
            label_noise=0.3,
            tau=0.9,
            microbatches=3,
            steps=STEPS,
            threads=1,
            progress=False,
            model_options={"hidden": "32", "dropout": "0.1", "norm": "batch"},
            scheduler="plateau",
            patience=1,
            validate_every=30,
            checkpoint_every=20,
            record_layers_every=50,
            run_dir=folder,
        )
    )


def start(folder: Path) -> BaseProcess:
    # A server that has imported everything forks a fresh process each time, without the seconds
    # that imports take.
    context = multiprocessing.get_context("forkserver")
    # torch imports its compiler at an optimizer's first step.
    parts = ["gafscope.trainer", "sklearn.datasets", "pandas", "pyarrow.parquet", "torch._dynamo"]
    context.set_forkserver_preload(parts)
    process = context.Process(target=work, args=(str(folder),))
    process.start()
    return process


def finish(folder: Path) -> None:
    process = start(folder)
    process.join(timeout=120)
    assert process.exitcode == 0


def lines(folder: Path) -> int:
    path = folder / "scalars.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def files(folder: Path) -> dict[str, bytes]:
    """Everything but times: matrices and summary byte for byte."""
    kept = [*sorted((folder / "matrices").iterdir()), folder / "summary.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def kill_somewhere(folder: Path, after: int, wait: float) -> bool:
    """Start the run and kill it once it has so many rows; tell whether it was still alive."""
    process = start(folder)
    while lines(folder) <= after and process.is_alive():
        time.sleep(0.001)
    time.sleep(wait)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    finish(whole)
    draws, killed, rows = random.Random(5), 0, []
    for number in range(KILLS):
        # Ever further into the run, so that all of it is hit; past a checkpoint or not.
        after = draws.randint(number * STEPS // 14, (number + 2) * STEPS // 14)
        killed += kill_somewhere(torn, after, draws.random() * 0.02)
        rows.append(lines(torn))
    assert killed >= KILLS - 2, rows
    assert sum(count % 20 != 0 for count in rows) >= KILLS // 2, rows
    finish(torn)

    assert_same_scalars(load_run(whole).scalars, load_run(torn).scalars)
    assert files(whole) == files(torn)
    ends = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, torn)]
    # The seconds make rows longer or shorter, and so the bytes before a checkpoint.
    positions = [end.pop("position") for end in ends]
    assert positions[0]["parts"] == positions[1]["parts"]
    watchdogs = [repr(end.pop("watchdog")) for end in ends]
    assert watchdogs[0] == watchdogs[1]
    assert same(*ends)
    # Nothing half written is left behind.
    assert sorted(p.name for p in torn.rglob("*")) == sorted(p.name for p in whole.rglob("*"))
