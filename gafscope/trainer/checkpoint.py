"""Checkpoints: everything that a run needs to go on bit for bit, in one file."""

from __future__ import annotations

import pickle
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
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "step" not in state:
            raise ValueError("it is another kind of file")
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"Cannot read the checkpoint {path}: {reason}. Remove the run's folder to start the "
            "run anew, or put an intact copy of the file there."
        ) from error
    return state
