"""Writing a run's folder so that a run killed at any moment can go on where it was."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from gafscope.errors import UserError
from gafscope.records.files import atomic_write, remove_leftovers, write_failure
from gafscope.records.folder import MATRICES, SCALARS, SUMMARY, open_folder
from gafscope.records.matrices import WHOLE_MODEL, encode_part, part_files, part_name
from gafscope.records.rows import encode_row, plain

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LOST = (
    "The last checkpoint and everything recorded before it are intact, and the same command "
    "goes on from there."
)


@final
class RunWriter:
    """Writes the record of one run: scalars at once, matrices at every flush.

    The record is a function of the calls alone: after a crash, `rewind` to the position stored
    in a checkpoint followed by the same calls gives byte-identical files.

    Args:
        folder: The run's folder; created where it is missing. One that already holds this run
            is opened again, and `rewind` must then say where to go on.
        config: Settings, plain values only; written to `config.yaml` in the order given.
        seed: The seed of the run.
        device: The device it runs on, as torch names it.

    Raises:
        UserError: The folder holds another run or other files, or it cannot be written. Of the
            settings only `steps` may differ from the run there, and only grow.
    """

    def __init__(
        self, folder: str | os.PathLike[str], config: Mapping[str, Any], *, seed: int, device: str
    ) -> None:
        self._folder = Path(folder)
        reopened = open_folder(self._folder, config, seed=seed, device=device)
        self._path = self._folder / SCALARS
        try:
            # Unbuffered: a line is with the system, and so safe from a kill, once it is written.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (open while training)
        except OSError as error:
            raise write_failure(self._path, error, _LOST) from error
        self._bytes = self._parts = 0
        self._matrices: list[tuple[int, str, np.ndarray]] = []
        self._placed = not reopened
        self._ended = (self._folder / SUMMARY).exists()

    def scalars(self, row: Mapping[str, Any]) -> None:
        """Append one step's scalars. A summary of fewer steps is removed.

        Args:
            row: Column name -> number, bool, string, None or a list of these.

        Raises:
            UserError: A column holds something else, or the system refused. A line that was
                written in part is taken back.
        """
        assert self._placed, "a run that was opened again must be rewound before it goes on"
        line = rest = encode_row(row)
        if self._ended:
            self._drop_summary()
        try:
            while rest:  # a disk that is filling up takes a part of the line first
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._bytes)
            raise write_failure(self._path, error, _LOST) from error
        self._bytes += len(line)

    def gramians(self, step: int, matrix: ArrayLike, layers: Mapping[str, ArrayLike]) -> None:
        """Record one step's Gramians; they reach the disk with the next flush.

        Args:
            step: The step, larger than any recorded before.
            matrix: Gramian of the whole model, (k, k), a tensor or an array.
            layers: The same by layer; may be empty.
        """
        assert self._placed, "a run that was opened again must be rewound before it goes on"
        assert not self._matrices or step > self._matrices[-1][0], "steps must ascend"
        for name, value in {WHOLE_MODEL: matrix, **layers}.items():
            self._matrices.append((step, name, _copy(value)))

    def flush(self) -> dict[str, int]:
        """Bring everything recorded so far onto the disk.

        Returns:
            The position reached, plain ints to be stored in a checkpoint and given to `rewind`:
            `bytes` of scalars and `parts` of matrices.

        Raises:
            UserError: The system refused.
        """
        if self._matrices:
            target = self._folder / MATRICES / part_name(self._matrices[0][0])
            assert not target.exists(), f"{target.name} was already written"
            with atomic_write(target) as file:
                file.write(encode_part(self._matrices))
            self._matrices.clear()
            self._parts += 1
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_failure(self._path, error, _LOST) from error
        return {"bytes": self._bytes, "parts": self._parts}

    def rewind(self, position: Mapping[str, int] | None) -> None:
        """Drop everything that was written after `position`.

        The summary stays where nothing else is dropped: a run that had ended is still whole.

        Args:
            position: What `flush` returned, or None for the very start.

        Raises:
            UserError: The record is shorter than the position, so that something was removed
                from it; or the system refused.
        """
        size, count = (position["bytes"], position["parts"]) if position else (0, 0)
        parts = part_files(self._folder / MATRICES)
        found = self._path.stat().st_size
        if found < size or len(parts) < count:
            raise UserError(
                f"The record in {self._folder} ends before its checkpoint: {SCALARS} has {found} "
                f"bytes (checkpoint: {size}) and {MATRICES} has {len(parts)} parts (checkpoint: "
                f"{count}). Restore the missing files, or remove the folder and start anew."
            )
        try:
            for path in parts[count:]:
                path.unlink()
            for folder in (self._folder, self._folder / MATRICES):
                remove_leftovers(folder)
            self._file.truncate(size)
        except OSError as error:
            raise write_failure(self._folder, error, _LOST) from error
        if found > size or len(parts) > count:
            self._drop_summary()
        self._matrices.clear()
        self._bytes, self._parts, self._placed = size, count, True

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write the run's final numbers.

        Args:
            values: Name -> number, string, list ...; NaN is written as null.

        Raises:
            UserError: A value is something else, or the system refused.
        """
        with atomic_write(self._folder / SUMMARY, "w") as file:
            file.write(json.dumps(plain(values), indent=2, allow_nan=False) + "\n")
        self._ended = True

    def close(self) -> None:
        """Flush and close the files; closing twice does nothing."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()

    def _drop_summary(self) -> None:
        path = self._folder / SUMMARY
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_failure(path, error, _LOST) from error
        self._ended = False


def _copy(matrix: ArrayLike) -> np.ndarray:
    source = matrix.detach().cpu().numpy() if isinstance(matrix, torch.Tensor) else matrix
    copy = np.array(source, dtype=np.float64)
    assert copy.ndim == 2 and copy.shape[0] == copy.shape[1], copy.shape
    return copy
