"""The record of a watched loop: a run's folder, temporary unless one is named."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import distributed

from gafscope.errors import UserError
from gafscope.instruments.listener import Listener, Record
from gafscope.records import Run, RunWriter, load_run
from gafscope.records.folder import is_run

# Recorded steps from one flush to the next: a few megabytes at most are lost by a kill.
_FLUSH_EVERY = 100


@final
class Log:
    """Writes records and hands them to whoever listens.

    Args:
        folder: The run's folder; None for a temporary one, which goes when the program ends.
        config: Settings of the run.
        device: The device that the model is on.
        listeners: Called with every record.

    Raises:
        UserError: If the folder holds a run or other files already, or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path | None,
        config: Mapping[str, Any],
        device: str,
        listeners: Sequence[Listener],
    ):
        self._config, self._device, self._listeners = config, device, listeners
        if folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="gafscope-"))
            atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        else:
            self.folder = _of_this_process(Path(folder))
            if is_run(self.folder):
                raise UserError(
                    f"The folder {self.folder} holds a run already; give watch another run_dir, "
                    "or remove the folder if it is no longer needed."
                )
        self._writer: RunWriter | None = None
        self._position: Mapping[str, int] | None = None
        self._waiting = 0

    def open(self) -> None:
        """Begin the record, or go on with it."""
        seed = torch.initial_seed()
        if self._writer is None:
            # A second opening goes on, whatever the random state is by then.
            self._seed = seed
        self._writer = RunWriter(self.folder, self._config, seed=self._seed, device=self._device)
        if self._position is not None:
            self._writer.rewind(self._position)

    def write(self, record: Record) -> None:
        """Write a record down and hand it on.

        Args:
            record: The record.

        Raises:
            UserError: If the folder cannot be written.
        """
        assert self._writer is not None
        self._writer.scalars(record.row)
        if record.gramian is not None:
            self._writer.gramians(record.step, record.gramian.matrix, record.gramian.layers)
            self._waiting += 1
        if self._waiting >= _FLUSH_EVERY:
            self.flush()
        for listener in self._listeners:
            listener(record)

    def flush(self) -> None:
        """Bring everything onto the disk."""
        assert self._writer is not None
        self._position = self._writer.flush()
        self._waiting = 0

    def run(self, is_open: bool) -> Run:
        """Read the record as it stands.

        Args:
            is_open: Whether it is still being written.
        """
        if is_open:
            self.flush()
        return load_run(self.folder)

    def close(self, summary: Mapping[str, Any]) -> None:
        """End the record.

        Args:
            summary: The run's final numbers.
        """
        assert self._writer is not None
        try:
            self.flush()
            self._writer.summary(summary)
        finally:
            self._writer.close()


def _of_this_process(folder: Path) -> Path:
    """Give every process of a distributed run a folder of its own."""
    rank = process_rank()
    return folder.with_name(f"{folder.name}-rank{rank}") if rank else folder


def process_rank() -> int:
    """Give this process's rank in a distributed run, 0 in any other."""
    many = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if many else 0
