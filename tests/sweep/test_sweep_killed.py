"""SIGKILL of workers at random moments: no trial is lost, and none is counted twice."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from sweep_recipes import SETTINGS, recipe_of

from gafscope.records import load_run
from gafscope.sweep import Recipe
from gafscope.sweep.points import settled
from gafscope.sweep.queue import Queue
from gafscope.sweep.tables import trials_table
from gafscope.sweep.worker import work
from gafscope.trainer import train


def start(recipe: Recipe, name: str) -> BaseProcess:
    # A server that has imported everything forks a fresh process each time, without the seconds
    # that imports take.
    context = multiprocessing.get_context("forkserver")
    parts = ["gafscope.sweep.worker", "optuna", "sklearn.datasets", "pandas", "pyarrow.parquet"]
    context.set_forkserver_preload(parts)
    process = context.Process(target=work, args=(recipe, name, 0))
    process.start()
    return process


def assert_nothing_lost(recipe: Recipe, kills: int) -> None:
    """Every point has one complete trial, and its run is that of one that was never killed."""
    queue = Queue(recipe)
    trials = queue.trials()
    assert all(map(settled, trials.values()))
    complete = [[t for t in mine if t.state.name == "COMPLETE"] for mine in trials.values()]
    assert [len(mine) for mine in complete] == [1] * len(trials)
    assert sum(map(len, trials.values())) > len(trials), f"{kills} kills, but nobody died at work"
    table = trials_table(queue)
    assert len(table) == len(trials)
    assert not table.duplicated(["rule", "tau", "seed"]).any()
    for _, row in table.iterrows():
        folder = Path(recipe.folder) / "trials" / row["folder"]
        run = load_run(folder)
        assert run.scalars["step"].tolist() == list(range(recipe.base.steps))
        reference = train(
            replace(
                recipe.base,
                rule=row["rule"],
                tau=None if pd.isna(row["tau"]) else row["tau"],
                seed=int(row["seed"]),
                run_dir=str(folder.parent.parent / "reference" / folder.name),
            )
        )
        assert run.scalars["accepted"].tolist() == reference.scalars["accepted"].tolist()
        assert run.summary["test_loss"] == pytest.approx(reference.summary["test_loss"], rel=1e-4)


@pytest.mark.parametrize("batch", [1, 4])
def test_killed_workers_lose_nothing(batch, tmp_path):
    recipe = recipe_of(tmp_path / "sweep", batch=batch, seeds=1, workers=2)
    queue = Queue(recipe)
    queue.fill()
    draw = random.Random(batch)
    workers = {name: start(recipe, name) for name in ("a0", "b0")}
    kills, until = 0, time.monotonic() + 240
    while not all(map(settled, queue.trials().values())):
        assert time.monotonic() < until
        running = [t for mine in queue.trials().values() for t in mine if t.state.name == "RUNNING"]
        if kills < 4 and running:
            time.sleep(draw.uniform(0, 0.3))
            name = draw.choice(sorted(workers))
            workers[name].kill()
            workers.pop(name).join()
            queue.bury(name)  # as the pool does; without it the heartbeat takes its time
            kills += 1
            workers[f"{name[0]}{kills}"] = start(recipe, f"{name[0]}{kills}")
        time.sleep(0.05)
    for process in workers.values():
        process.join(timeout=60)
        assert process.exitcode == 0
    assert_nothing_lost(recipe, kills)


@pytest.mark.slow
def test_a_command_killed_with_all_its_workers_goes_on(tmp_path):
    """Twelve workers and then the command itself, some of them at the same moment."""
    settings = SETTINGS | {"steps": 400, "checkpoint_every": 50}
    grid = [{"rule": ["mean"]}, {"rule": ["gaf"], "tau": [0.6, 0.7, 0.8, 0.9]}]
    values = {"settings": settings, "grid": grid, "seeds": 3, "heartbeat": 1, "batch": 3}
    file = tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump(values | {"folder": str(tmp_path / "sweep"), "workers": 2}))
    command = [sys.executable, "-m", "gafscope", "sweep", str(file), "--no-progress"]
    draw, kills = random.Random(0), 0
    process = subprocess.Popen(command)
    until = time.monotonic() + 550
    while process.poll() is None or process.returncode != 0:
        assert time.monotonic() < until
        if process.poll() is not None:
            assert process.returncode == -signal.SIGKILL
            process = subprocess.Popen(command)
        time.sleep(draw.uniform(1, 6))
        workers = psutil.Process(process.pid).children() if process.poll() is None else []
        if kills < 12 and workers:
            victim = process.pid if kills % 4 == 3 else draw.choice(workers).pid
            os.kill(victim, signal.SIGKILL)
            kills += 1
    recipe = recipe_of(
        tmp_path / "sweep", settings=settings, grid=grid, seeds=3, batch=3, name="killed"
    )
    assert_nothing_lost(recipe, kills)
    table = pd.read_csv(tmp_path / "sweep" / "table.csv")
    assert len(table) == 15
