"""The record and the checkpoints of one `fit`: opened where the run stands, saved as it goes on.

Among ranks, rank 0 writes and every rank reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch

from gafscope.records import RunWriter, load_run
from gafscope.trainer.background import Background, detached_copy
from gafscope.trainer.batches import Batches
from gafscope.trainer.checkpoint import load_checkpoint, save_best, save_checkpoint
from gafscope.trainer.row import describe
from gafscope.trainer.state import capture, restore
from gafscope.trainer.summary import summarize

if TYPE_CHECKING:
    import pandas as pd

    from gafscope.trainer.trainer import Trainer


@final
class Session:
    """A run's folder while it is trained on; without a `run_dir` it keeps nothing.

    Args:
        trainer: The trainer. It is put into the state of the run's last checkpoint.
        batches: Its macrobatches, put there too.
        steps: Steps in all.
        stack: Closes the record.

    Attributes:
        writer: The record; None without a `run_dir`, and on ranks that do not write.

    Raises:
        UserError: If the folder holds another run, none of its checkpoints is intact, or it
            cannot be written.
    """

    def __init__(self, trainer: Trainer, batches: Batches, steps: int, stack: ExitStack):
        self.writer: RunWriter | None = None
        self._trainer, self._batches, self._ranks = trainer, batches, trainer.ranks
        self._background = Background()
        self._newest: int | None = None
        # What best.pt holds is not known: it may have been written after the last checkpoint.
        self._best = -1
        if trainer.run_dir is None:
            return
        self._folder = Path(trainer.run_dir)
        config = describe(trainer, steps) if trainer.config is None else trainer.config
        if self._ranks is None or self._ranks.leads:
            device = str(trainer.device)
            self.writer = RunWriter(self._folder, config, seed=trainer.seed, device=device)
            stack.callback(self.writer.close)
        stack.push(self._end)
        state = self._load()
        if state is not None:
            restore(trainer, batches, state)
            self._newest = state["step"]
        if not self.writer:
            return
        if not trainer.ending(steps, stalled=trainer.status == "stalled"):
            self.writer.rewind(None if state is None else state["position"])
        if state is None:
            # A run that fails before its first checkpoint begins again from here.
            self._save(wait=True)

    def save(self, wait: bool = False) -> None:
        """Write a checkpoint of the trainer as it is between two steps, while it goes on.

        Ranks compare their parameters at the same time.

        Args:
            wait: Return only when it is on the disk.

        Raises:
            UserError: If the system refused, this checkpoint or the one before; those that were
                written are intact. Or if the ranks' parameters have parted.
        """
        if self._ranks is not None:
            self._ranks.check_equal(self._trainer.model)
        self._save(wait)
        if wait and self._ranks is not None:
            # No rank ends before the run is safe.
            self._ranks.wait()

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written."""
        self._background.check()

    def result(self, validate: Any, test: Any) -> pd.DataFrame:
        """Write the final numbers of a run that has ended, if they are not there.

        Args:
            validate: As in `fit`.
            test: As in `fit`.

        Returns:
            The run's scalars.
        """
        run = None if self.writer is None else load_run(self._folder)
        if self._lacks(run is not None and not run.summary):
            numbers = summarize(self._trainer, validate, test)
            if self.writer is not None:
                self.writer.summary(numbers)
        if run is None:
            run = load_run(self._folder)
        return run.scalars

    def _lacks(self, summary: bool) -> bool:
        if self._ranks is None:
            return summary
        return bool(self._ranks.from_leader(torch.tensor([float(summary)])))

    def _load(self) -> dict[str, Any] | None:
        """Read the newest checkpoint, on every rank the same."""
        if self._ranks is None:
            return load_checkpoint(self._folder)
        self._ranks.wait()  # until rank 0 has made the folder
        state = load_checkpoint(self._folder)
        step = "none" if state is None else state["step"]
        self._ranks.check_alike({f"step of the checkpoint in {self._folder}": step})
        return state

    def _save(self, wait: bool) -> None:
        if self.writer is None:
            return
        self._background.wait()
        position = self.writer.flush()
        state = detached_copy(capture(self._trainer, self._batches, position))
        self._background.start(partial(self._write, state))
        if wait:
            self._background.wait()

    def _write(self, state: Mapping[str, Any]) -> None:
        best = state["best"]
        if best["step"] > self._best:
            # First, so that no checkpoint is ahead of it.
            save_best(self._folder, best["state"])
            self._best = best["step"]
        save_checkpoint(self._folder, state, self._trainer.keep_checkpoints, self._newest)
        self._newest = state["step"]

    def _end(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        """Let no write go on after `fit`; its error counts where there is no other."""
        try:
            self._background.wait()
        except Exception:
            if error is None:
                raise
