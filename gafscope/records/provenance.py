"""Where a run's numbers come from: versions, commit, seed, device, command, time."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch


def provenance(*, seed: int, device: str) -> dict[str, Any]:
    """Collect what is needed to say later where a run's numbers came from.

    Args:
        seed: The seed of the run.
        device: The device it runs on, as torch names it: `"cpu"`, `"cuda:0"` ...

    Returns:
        Plain values only, ready for JSON. `git` is None outside a git repository; otherwise it
        holds `commit` and `dirty` (tracked files differ from the commit) of the current folder.
    """
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": version("numpy"),
            "gafscope": _own_version(),
        },
        "git": _git_state(),
        "seed": seed,
        "device": device,
        "device_name": _device_name(device),
        "command": shlex.join(sys.orig_argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _own_version() -> str | None:
    try:
        return version("gafscope")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return None


def _device_name(device: str) -> str:
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return platform.machine()


def _git_state() -> dict[str, Any] | None:
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": changes != ""}


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            check=True,
            text=True,
            timeout=10,
            # Looking must not take the index lock from a git command of the user's own.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
