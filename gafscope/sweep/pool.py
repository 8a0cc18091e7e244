"""Worker processes of this machine: started, replaced when they die, ended with the sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import final

from gafscope.errors import UserError
from gafscope.sweep.queue import Queue
from gafscope.sweep.recipe import Recipe
from gafscope.sweep.worker import new_worker_name

_GENTLY = 20.0  # seconds to write checkpoints after SIGTERM
# Deaths without one settled trial in between, after which nothing will get better.
_HOPELESS = 12


@final
class Pool:
    """Worker processes.

    A worker reads the recipe from its standard input, and ends when that is closed: none outlives
    its starter, however that dies.

    Args:
        recipe: The sweep.
        queue: Where the trials of a dead worker are given up at once.
    """

    def __init__(self, recipe: Recipe, queue: Queue):
        self._recipe, self._queue = recipe, queue
        self._workers: dict[int, tuple[str, subprocess.Popen[str]]] = {}
        self._deaths = 0
        self._logs = Path(recipe.folder) / "workers"
        self._logs.mkdir(parents=True, exist_ok=True)
        for number in range(recipe.worker_count):
            self._start(number)

    def tend(self, progressed: bool) -> bool:
        """Replace workers that have died.

        Args:
            progressed: Whether a trial has been settled since the last call.

        Returns:
            Whether any worker is left: they end when everything is settled.

        Raises:
            UserError: If they die again and again.
        """
        self._deaths = 0 if progressed else self._deaths
        for number, (name, process) in list(self._workers.items()):
            if process.poll() is None:
                continue
            del self._workers[number]
            if process.returncode == 0:
                continue
            self._queue.bury(name)
            self._deaths += 1
            if self._deaths >= _HOPELESS:
                raise UserError(
                    f"The workers of this sweep die again and again, the last one with: "
                    f"{self._last_words(name)}. Their logs are in {self._logs}."
                )
            self._start(number)
        return bool(self._workers)

    def stop(self) -> None:
        """End the workers: they write checkpoints and give their trials back."""
        processes = [process for _, process in self._workers.values()]
        for process in processes:
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + _GENTLY
        for name, process in self._workers.values():
            try:
                process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.returncode != 0:
                self._queue.bury(name)
        self._workers.clear()

    def _start(self, number: int) -> None:
        name = new_worker_name()
        with (self._logs / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "gafscope.sweep"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                # Ctrl-C reaches this process alone, which then ends the workers in order.
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": str(self._recipe.base.threads or 1)},
            )
        self._workers[number] = name, process
        assert process.stdin is not None
        order = {"recipe": self._recipe.as_json(), "worker": name, "number": number}
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return  # dead already, as the next `tend` finds

    def _last_words(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("gafscope: ").rstrip(".") if lines else "no message"
