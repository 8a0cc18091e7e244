"""Checkpoints: everything that a run needs to go on bit for bit, in one file."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gafscope.errors import UserError
from gafscope.records import atomic_write

NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: the previous one stays until the new one is complete.

    Args:
        folder: The run's folder.
        state: Tensors, numbers, strings and containers of these.

    Raises:
        UserError: If the file cannot be written (disk full, read-only folder).
    """
    with atomic_write(folder / NAME) as file:
        torch.save(dict(state), file)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read a run's checkpoint; nothing in it can run code.

    Args:
        folder: The run's folder.

    Returns:
        What was saved; None when there is none.

    Raises:
        UserError: If the file is damaged or is no checkpoint.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return _read(path)
    # A damaged file can make the reader fail in any way.
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UserError(
            f"Cannot read the checkpoint {path}: {reason}. Remove the run's folder to start the "
            "run anew, or put an intact copy of the file there."
        ) from error


def _read(path: Path) -> dict[str, Any]:
    # torch.load itself does not compare checksums.
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its part {damaged} has been altered")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError("it is another kind of file")
    return state
