"""`torchrun ... -m gafscope train`: one voice, one ending, and a restart that loses nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import gafscope

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds ranks under /proc")
SMALL = ["--model-options", "hidden", "8", "--microbatches", "4", "--device", "cpu"]


class Run:
    """A command under torchrun."""

    def __init__(self, folder: Path, ranks: int, *words: str, restarts: int = 0, command="train"):
        self.folder = folder
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        launcher.append(f"--max-restarts={restarts}")
        package = str(Path(gafscope.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "gafscope", command, *words],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, timeout: float = 240) -> tuple[int, str, list[str]]:
        """Give the exit code, the output, and the messages among all that torchrun writes."""
        try:
            output, errors = self.process.communicate(timeout=timeout)
        finally:
            for pid in self.ranks().values():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
        said = [line for line in errors.splitlines() if line.startswith("gafscope: ")]
        return self.process.returncode, output, said

    def ranks(self) -> dict[int, int]:
        """Find the processes of the ranks, rank -> number."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    words = (entry / "environ").read_bytes().split(b"\0")
                except (OSError, IndexError):
                    continue
                rank = [word[5:] for word in words if word.startswith(b"RANK=")]
                if parent == self.process.pid and rank:
                    found[int(rank[0])] = int(entry.name)
        return found

    def rows(self) -> int:
        path = self.folder / "run" / "scalars.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for(self, rows: int) -> None:
        while self.rows() < rows and self.process.poll() is None:
            time.sleep(0.01)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "run" / "checkpoint.pt", weights_only=True)["model"]


def test_a_killed_rank_is_started_again_and_the_run_ends_as_an_uninterrupted_one(tmp_path):
    words = [*SMALL, "--steps", "150", "--checkpoint-every", "20", "--run-dir", "run"]
    alone = tmp_path / "alone"
    alone.mkdir()
    subprocess.run(
        [sys.executable, "-m", "gafscope", "train", *words, "--threads", "1"],
        cwd=alone,
        env={**os.environ, "PYTHONPATH": str(Path(gafscope.__file__).parents[1])},
        check=True,
        capture_output=True,
    )
    torn = tmp_path / "torn"
    torn.mkdir()
    run = Run(torn, 2, *words, "--threads", "1", restarts=2)
    run.wait_for(70)
    os.kill(run.ranks()[1], signal.SIGKILL)
    code, output, said = run.end()
    assert code == 0
    assert output.count("updates  ") == 1 and output.count("Run: run") == 1
    assert len(said) == 1 and "rank 1 (last step " in said[0] and "has gone" in said[0]
    for name, value in weights(alone).items():
        assert torch.equal(weights(torn)[name], value)
    assert json.loads((torn / "run" / "summary.json").read_text())["steps"] == 150


@pytest.mark.parametrize(
    ("ranks", "command", "words", "message"),
    [
        (2, "train", ["--microbatches", "3"], "microbatches=3 and there are 2 ranks; use 4"),
        (1, "train", [], "torchrun was started with one process"),
        (2, "demo", [], "only 'train' shares out, but the command is 'demo'"),
    ],
)
def test_a_mistake_is_told_once_and_ends_all(ranks, command, words, message, tmp_path):
    code, output, said = Run(tmp_path, ranks, *words, command=command).end()
    assert code != 0
    assert [message in line for line in said] == [True], said
    assert not output and not list(tmp_path.iterdir())


def test_sigterm_of_the_launcher_leaves_a_checkpoint_within_ten_seconds(tmp_path):
    run = Run(tmp_path, 2, *SMALL, "--steps", "100000", "--run-dir", "run")
    run.wait_for(5)
    started, path = time.monotonic(), tmp_path / "run" / "checkpoint.pt"
    run.process.terminate()
    code, _, said = run.end()
    assert code != 0 and len(said) == 1 and said[0].startswith("gafscope: terminated; what was")
    assert torch.load(path, weights_only=True)["step"] == run.rows() >= 5
    assert path.stat().st_mtime - time.time() + time.monotonic() - started < 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_kills_at_random_moments(tmp_path):
    words = [*SMALL, "--steps", "600", "--checkpoint-every", "30", "--run-dir", "run"]
    words += ["--model-options", "hidden", "16", "norm", "batch", "dropout", "0.1"]
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
    assert Run(tmp_path / "whole", 4, *words).end(900)[0] == 0
    run, draws = Run(tmp_path / "torn", 4, *words, restarts=12), random.Random(7)
    for number in range(10):
        run.wait_for(draws.randint(number * 50, number * 50 + 70))
        time.sleep(draws.random())
        for victim in [draws.choice(list(run.ranks().items()))] if run.ranks() else []:
            os.kill(victim[1], signal.SIGKILL)
        time.sleep(15)  # a killed rank's job is started anew
    assert run.end(1800)[0] == 0
    whole, torn = weights(tmp_path / "whole"), weights(tmp_path / "torn")
    assert all(torch.equal(torn[name], value) for name, value in whole.items())
