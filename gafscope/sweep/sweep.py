"""Running a whole sweep from one command: starting workers, waiting, and the tables at the end."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from tqdm import tqdm

from gafscope.errors import UserError
from gafscope.records.files import write_failure
from gafscope.sweep.points import settled, unfinished
from gafscope.sweep.pool import Pool
from gafscope.sweep.queue import Queue
from gafscope.sweep.recipe import Recipe
from gafscope.sweep.slurm import SlurmJobs
from gafscope.sweep.tables import trials_table

if TYPE_CHECKING:
    import pandas as pd

_LOOK = 0.5


def run_sweep(
    recipe: Recipe, *, join: bool = False, retry_failed: bool = False, progress: bool = True
) -> pd.DataFrame:
    """Run what is not settled of a sweep, and wait for what runs elsewhere.

    The same call goes on with a sweep that was interrupted, killed, or that other machines work
    on at the same moment.

    Args:
        recipe: The sweep.
        join: Only add this machine's workers to a sweep that has been begun.
        retry_failed: Run trials again that ended with an error.
        progress: Show a progress bar.

    Returns:
        One row a run: see `trials_table`.

    Raises:
        UserError: If the storage cannot be used, or no worker stays alive.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after the workers have ended.
    """
    folder = Path(recipe.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failure(folder, error, "No trial was begun.") from error
    queue = Queue(recipe, join=join)
    trials = queue.fill(retry_failed)
    if retry_failed or not all(map(settled, trials.values())):
        with _signals() as asked:
            workers = SlurmJobs(recipe, queue) if recipe.slurm else Pool(recipe, queue)
            try:
                _wait(queue, workers, progress, recipe.name, asked)
            finally:
                workers.stop()
    return trials_table(queue)


def _wait(
    queue: Queue, workers: Pool | SlurmJobs, progress: bool, name: str, asked: Sequence[int]
) -> None:
    """Show how far the sweep is until all is settled, or a signal asks to end."""
    with _Bar(queue, progress, name) as bar:
        while not bar.update():
            if asked:
                raise KeyboardInterrupt
            if not workers.tend(bar.moved):
                # The last one may have settled the last trial since.
                if bar.update():
                    return
                raise UserError(
                    f"All workers of the sweep '{name}' have ended before it did. The same command "
                    "goes on."
                )
            time.sleep(_LOOK)


@final
class _Bar:
    """Settled trials, with the time left.

    Args:
        queue: The queue.
        shown: Whether to show it.
        name: What stands before it.
    """

    def __init__(self, queue: Queue, shown: bool, name: str):
        self._queue = queue
        self.moved = False
        trials = queue.trials()
        self._bar = tqdm(
            total=len(trials),
            initial=sum(map(settled, trials.values())),
            desc=name,
            unit="trial",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            smoothing=0,  # workers end in bursts
            disable=not shown,
            dynamic_ncols=True,
            leave=False,
        )
        self._done = int(self._bar.initial) if shown else 0

    def update(self) -> bool:
        """Look at the queue; tell whether everything is settled."""
        trials = self._queue.trials().values()
        done = sum(map(settled, trials))
        running = sum(1 for mine in trials for t in unfinished(mine) if t.state.name == "RUNNING")
        self.moved = done > self._done
        self._bar.set_postfix({"running": running}, refresh=False)
        self._bar.update(done - self._done)
        self._done = done
        return done == len(trials)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM; a second Ctrl-C interrupts at once.

    An exception that a handler raises in the middle of a database's library may be lost there.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
