"""`python -m gafscope sweep`: workers, tables and figure, interruptions, joining, Slurm."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from sweep_recipes import SETTINGS, recipe_of

from gafscope.cli import main
from gafscope.plots.sweep import plot_sweep
from gafscope.sweep import sweep as module
from gafscope.sweep import trials_table
from gafscope.sweep.points import settled
from gafscope.sweep.queue import Queue
from gafscope.sweep.recipe import Recipe
from gafscope.sweep.worker import work

GRID = [{"rule": ["mean"]}, {"rule": ["gaf"], "tau": [0.7, 0.9]}]


class Here:
    """Workers that need no process: everything is done when they are looked after."""

    def __init__(self, recipe: Recipe, queue: Queue):
        self._recipe, self._left = recipe, True

    def tend(self, progressed: bool) -> bool:
        if self._left:
            work(self._recipe, "here", 0)
        left, self._left = self._left, False
        return left

    def stop(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(module, "Pool", Here)


def write(folder: Path, **changes) -> Path:
    values = {"settings": SETTINGS, "grid": GRID, "seeds": 3, "workers": 1, "heartbeat": 1}
    values |= {"folder": str(folder / "sweep"), **changes}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return path


def test_a_grid_ends_in_a_table_a_figure_and_a_sentence(tmp_path, here, capsys):
    command = ["sweep", str(write(tmp_path)), "--no-progress"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "3 settings, 3 seeds each" in text
    assert "the best of 3 settings is rule" in " ".join(text.split())
    folder = tmp_path / "sweep"
    table = pd.read_csv(folder / "table.csv")
    assert list(table.columns[:3]) == ["rule", "tau", "seed"]
    assert len(table) == 9
    summary = pd.read_csv(folder / "summary.csv")
    assert summary["seeds"].tolist() == [3, 3, 3]
    assert summary["validation_accuracy"].is_monotonic_decreasing
    best = summary.iloc[0]
    mine = table[(table["rule"] == best["rule"])]
    mine = mine if pd.isna(best["tau"]) else mine[mine["tau"] == best["tau"]]
    values = mine["validation_accuracy"].to_numpy()
    assert best["validation_accuracy"] == pytest.approx(values.mean())
    margin = 4.302652729911275 * values.std(ddof=1) / np.sqrt(3)  # Student's t, 2 degrees
    assert best["validation_accuracy_high"] == pytest.approx(values.mean() + margin)
    assert (folder / "figures" / "sweep.svg").stat().st_size > 10_000
    assert (folder / "figures" / "sweep.png").exists()

    # Again: nothing is run a second time.
    before = (folder / "table.csv").read_bytes()
    assert main(command) == 0
    assert (folder / "table.csv").read_bytes() == before
    # A grid that grows runs what is new.
    larger = [GRID[0], {"rule": ["gaf"], "tau": [0.7, 0.8, 0.9]}]
    assert main(["sweep", str(write(tmp_path, grid=larger)), "--no-progress"]) == 0
    after = pd.read_csv(folder / "table.csv")
    assert len(after) == 12
    kept = after[after["tau"] != 0.8].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, table, check_dtype=False)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_search_tries_as_many_as_it_should(sampler, tmp_path, here):
    space = {
        "lr": {"low": 0.01, "high": 0.3, "log": True},
        "microbatch_size": {"low": 10, "high": 30, "step": 10},
        "rule": ["gaf", "mean"],
    }
    search = {"sampler": sampler, "trials": 4, "space": space}
    settings = SETTINGS | {"steps": 20}
    path = write(tmp_path, grid=None, search=search, seeds=2, settings=settings)
    assert main(["sweep", str(path), "--no-progress"]) == 0
    table = pd.read_csv(tmp_path / "sweep" / "table.csv")
    assert len(table) == 8
    assert table.groupby("trial")["seed"].apply(list).tolist() == [[0, 1]] * 4
    assert table["lr"].between(0.01, 0.3).all()
    assert set(table["microbatch_size"]) <= {10, 20, 30}
    assert table.groupby("trial")["lr"].nunique().eq(1).all()
    assert table["lr"].nunique() == 4


def test_one_setting_that_is_refused_does_not_stop_the_others(tmp_path, here, capsys):
    path = write(tmp_path, grid={"tau": [0.9, 3.0]}, seeds=1)
    assert main(["sweep", str(path), "--no-progress"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 runs ended with an error" in text
    assert "must lie in [0, 2]" in text
    table = pd.read_csv(tmp_path / "sweep" / "table.csv", keep_default_na=False)
    assert [bool(error) for error in table["error"]] == [False, True]


def test_when_no_setting_can_be_run_the_command_says_why(tmp_path, here, capsys):
    path = write(tmp_path, grid={"tau": [3.0]}, seeds=1)
    assert main(["sweep", str(path), "--no-progress"]) == 2
    assert "must lie in [0, 2]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["{recipe}", "--slurm", "partition"], "name=value"),
        (["{recipe}", "--storage", "nonsense"], "address of a database"),
        (["{recipe}", "--workers", "0"], "workers"),
        (["{recipe}", "--join"], "without --join"),
    ],
)
def test_mistakes_on_the_command_line(words, message, tmp_path, capsys):
    recipe = str(write(tmp_path))
    assert main(["sweep", *(word.format(recipe=recipe) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_two_commands_share_one_storage(tmp_path, here):
    """Each machine has a folder of its own here; the numbers are in the storage."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    first = recipe_of(tmp_path / "one", storage=storage)
    second = recipe_of(tmp_path / "two", storage=storage)
    queue = Queue(first, "first")
    queue.fill()
    held = queue.claim(3)
    for claim in held:
        row = {"seed": claim.settings[0].seed, "validation_accuracy": 0.5}
        queue.finish(claim, [row], 0.5)
    table = module.run_sweep(second, join=True, progress=False)
    assert len(table) == 8
    assert (table["validation_accuracy"] == 0.5).sum() == 3
    assert len(list((tmp_path / "two" / "trials").iterdir())) == 5
    pd.testing.assert_frame_equal(trials_table(Queue(first)), table)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_workers_and_the_same_command_goes_on(number, tmp_path):
    settings = SETTINGS | {"steps": 3000, "checkpoint_every": 300}
    path = write(tmp_path, settings=settings, grid={"tau": [0.8]}, seeds=2, batch=1, workers=2)
    command = [sys.executable, "-m", "gafscope", "sweep", str(path), "--no-progress"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    scalars = tmp_path / "sweep" / "trials"
    until = time.monotonic() + 120
    while not any(f.stat().st_size > 5000 for f in scalars.glob("*/scalars.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, 143)
    assert "same command goes on" in errors
    assert not any(worker.is_running() for worker in workers)
    recipe = recipe_of(tmp_path / "sweep", settings=settings, grid={"tau": [0.8]}, name="small")
    queue = Queue(recipe)
    states = [t.state.name for mine in queue.trials().values() for t in mine]
    assert "RUNNING" not in states  # given back, not left to the heartbeat
    before = [len(f.read_bytes().splitlines()) for f in scalars.glob("*/scalars.jsonl")]
    work(recipe, "later", 0)
    assert all(map(settled, queue.trials().values()))
    after = [len(f.read_bytes().splitlines()) for f in scalars.glob("*/scalars.jsonl")]
    assert 0 < sum(before) < 6000
    assert after == [3000, 3000]


# submitit's local executor leaves its controller, which ends a moment later, to Python.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function Popen")
def test_workers_that_are_slurm_jobs(tmp_path):
    """Submitit's local executor runs the same jobs on this machine."""
    path = write(tmp_path, grid={"tau": [0.7, 0.9]}, seeds=1, settings=SETTINGS | {"steps": 20})
    words = ["--slurm", "cluster=local", "timeout_min=5"]
    assert main(["sweep", str(path), *words, "--no-progress"]) == 0
    assert len(pd.read_csv(tmp_path / "sweep" / "table.csv")) == 2
    assert any((tmp_path / "sweep" / "slurm").iterdir())


def test_slurm_without_slurm_is_named(tmp_path, capsys):
    assert main(["sweep", str(write(tmp_path)), "--slurm", "partition=gpu"]) == 2
    message = capsys.readouterr().err
    assert "Slurm did not take the jobs" in message
    assert "cluster=local" in message


def test_the_figure_takes_numbers_rules_and_panels():
    rows = [
        {"rule": rule, "tau": tau, "label_noise": noise, "validation_accuracy": 0.5}
        for rule, taus in (("mean", [None]), ("gaf", [0.7, 0.9]), ("soft-gaf", [0.7, 0.9]))
        for tau in taus
        for noise in (0.0, 0.4)
    ]
    table = pd.DataFrame(rows)
    keys = ["rule", "tau", "label_noise"]
    figure = plot_sweep(table, keys, "validation_accuracy", False)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["label_noise 0.0", "label_noise 0.4"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "mean",
        "gaf",
        "soft-gaf",
    ]
    drawn = plot_sweep(table, keys, "validation_accuracy", True)
    assert [axes.get_xlabel() for axes in drawn.axes] == ["rule", "tau", "label noise"]
