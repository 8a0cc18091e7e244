"""Train as settings say, in a folder that is theirs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gafscope.errors import UserError
from gafscope.records import Run, load_run
from gafscope.trainer.job import assemble
from gafscope.trainer.options import make_rule
from gafscope.trainer.settings import TrainSettings

# Settings that say where and how to run, not what: a run may go on with others.
_ELSEWHERE = (
    "download",
    "download_url",
    "device",
    "device_decision",
    "run_dir",
    "progress",
    "keep_checkpoints",
    "rank_timeout",
)


def train(settings: TrainSettings, name: str = "train") -> Run:
    """Train as the settings say, or go on with, or return, the run that did.

    Args:
        settings: The settings.
        name: What stands before the progress bar.

    Returns:
        The run, read back from its folder.

    Raises:
        UserError: If a setting is wrong, data are missing, or the run diverges.
    """
    with using_threads(settings.threads):
        folder = run_folder(settings)
        assemble(settings, folder, run_config(settings), name).fit(settings.steps)
    return load_run(folder)


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Use this many processor threads inside the block.

    Args:
        count: Their number; None for torch's choice.

    Raises:
        UserError: If it is below 1.
    """
    if count is not None and count < 1:
        raise UserError(f"threads must be at least 1, but is {count}.")
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_config(settings: TrainSettings) -> dict[str, Any]:
    """Give the settings that make a run what it is.

    Args:
        settings: The settings.

    Returns:
        All but those that say where and how to run.
    """
    config = {key: value for key, value in asdict(settings).items() if key not in _ELSEWHERE}
    rule = make_rule(settings)
    # That of a smaller scope is its rule's.
    config["tau"] = getattr(rule, "tau", getattr(getattr(rule, "rule", None), "tau", None))
    if settings.yoked_to is not None:
        config["yoked_to"] = str(settings.yoked_to)
    # The published data sets are the same wherever they are; images or texts of one's own are not.
    folder = config.pop("data_dir")
    if settings.data in ("folder", "text") and folder is not None:
        config["data_dir"] = str(Path(folder).resolve())
    return config


def run_folder(settings: TrainSettings) -> Path:
    """Give the run's folder.

    Args:
        settings: The settings.

    Returns:
        `run_dir`, or a folder under runs/ that is the same for the same settings only.
    """
    if settings.run_dir is not None:
        return Path(settings.run_dir)
    config = {key: value for key, value in run_config(settings).items() if key != "steps"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:6]
    tau = config["tau"]
    rule = settings.rule if tau is None else f"{settings.rule}-tau{tau:g}"
    return Path("runs") / f"{settings.data}-{settings.model}-{rule}-seed{settings.seed}-{digest}"
