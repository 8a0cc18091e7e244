"""Checkpoints: everything that a run needs to go on bit for bit, in one file each.

The newest is `checkpoint.pt`; earlier ones that are kept are named by their step, as
`checkpoint-500.pt`. The weights at the best validation are in `best.pt`.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gafscope.errors import UserError
from gafscope.records import atomic_write

NAME, BEST = "checkpoint.pt", "best.pt"
_EARLIER = re.compile(r"checkpoint-(\d+)\.pt")

log = logging.getLogger("gafscope")


def save_checkpoint(
    folder: Path, state: Mapping[str, Any], keep: int = 1, previous: int | None = None
) -> None:
    """Write a checkpoint atomically: the previous one stays until the new one is complete.

    Args:
        folder: The run's folder.
        state: Tensors, numbers, strings and containers of these.
        keep: How many checkpoints to keep, at least 1: this one and those before it.
        previous: The step of the checkpoint before this one; None where there was none.

    Raises:
        UserError: If the file cannot be written (disk full, read-only folder).
    """
    path = folder / NAME
    with atomic_write(path) as file:
        torch.save(dict(state), file)
        aside = folder / f"checkpoint-{previous}.pt"
        # If it is there, the run has gone on from it, since checkpoint.pt was damaged.
        if keep > 1 and previous is not None and path.exists() and not aside.exists():
            # Only when all of the new one is on the disk. A kill between here and the exchange
            # leaves the previous one under its new name, where it is found.
            file.flush()
            os.fsync(file.fileno())
            os.replace(path, aside)
    earlier = _earlier(folder)
    # One of a later step is damaged, or the run would not have gone on before it.
    valid = [step for step in earlier if step < state["step"]][: keep - 1]
    for step in earlier.keys() - valid:
        earlier[step].unlink(missing_ok=True)


def save_best(folder: Path, weights: Mapping[str, Any]) -> None:
    """Write the model's state at its best validation.

    Args:
        folder: The run's folder.
        weights: The `state_dict` of the model: `model.load_state_dict(torch.load(path))` reads it.

    Raises:
        UserError: If the file cannot be written.
    """
    with atomic_write(folder / BEST) as file:
        torch.save(dict(weights), file)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read a run's newest intact checkpoint; nothing in it can run code.

    Args:
        folder: The run's folder.

    Returns:
        What was saved; None when there is none.

    Raises:
        UserError: If there are checkpoints but none of them is intact.
    """
    paths = [path for path in (folder / NAME, *_earlier(folder).values()) if path.exists()]
    damaged: list[tuple[Path, Exception]] = []
    for path in paths:
        try:
            state = _read(path)
        # A damaged file can make the reader fail in any way.
        except Exception as error:
            damaged.append((path, error))
            continue
        for other, error in damaged:
            log.warning(
                "The checkpoint %s cannot be read (%s); the run goes on from the one before it, "
                "%s, of step %d.",
                *(other, _reason(error), path.name, state["step"]),
            )
        return state
    if not damaged:
        return None
    path, error = damaged[0]
    others = f", nor any of the {len(damaged) - 1} before it" if len(damaged) > 1 else ""
    raise UserError(
        f"Cannot read the checkpoint {path}{others}: {_reason(error)}. Remove the run's folder to "
        "start the run anew, or put an intact copy of the file there."
    ) from error


def _earlier(folder: Path) -> dict[int, Path]:
    """Find the earlier checkpoints, step -> path, the newest first."""
    found = {
        int(match[1]): path for path in folder.iterdir() if (match := _EARLIER.fullmatch(path.name))
    }
    return dict(sorted(found.items(), reverse=True))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


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
