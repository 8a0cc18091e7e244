"""The record and the checkpoints of one `fit`: opened where the run stands, saved as it goes on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, final

from gafscope.records import RunWriter
from gafscope.trainer.batches import Batches
from gafscope.trainer.checkpoint import load_checkpoint, save_checkpoint
from gafscope.trainer.row import describe
from gafscope.trainer.state import capture, restore

if TYPE_CHECKING:
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
        writer: The record; None without a `run_dir`.

    Raises:
        UserError: If the folder holds another run, its checkpoint is damaged, or it cannot be
            written.
    """

    def __init__(self, trainer: Trainer, batches: Batches, steps: int, stack: ExitStack):
        self.writer: RunWriter | None = None
        self._trainer, self._batches = trainer, batches
        if trainer.run_dir is None:
            return
        self._folder = Path(trainer.run_dir)
        config = describe(trainer, steps) if trainer.config is None else trainer.config
        self.writer = RunWriter(self._folder, config, seed=trainer.seed, device=str(trainer.device))
        stack.callback(self.writer.close)
        state = load_checkpoint(self._folder)
        if state is not None:
            restore(trainer, batches, state)
        if not trainer.ending(steps, stalled=trainer.status == "stalled"):
            self.writer.rewind(None if state is None else state["position"])
        if state is None:
            # A run that fails before its first checkpoint begins again from here.
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the trainer as it is between two steps.

        Raises:
            UserError: If the system refused; the previous checkpoint is intact.
        """
        if self.writer is not None:
            position = self.writer.flush()
            save_checkpoint(self._folder, capture(self._trainer, self._batches, position))
