"""A trial of a group: what it trains, and its own record and checkpoints."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import final

import torch

from gafscope.errors import UserError
from gafscope.trainer import TrainSettings
from gafscope.trainer.batches import Batches
from gafscope.trainer.job import Job, assemble
from gafscope.trainer.session import Session
from gafscope.trainer.train import run_config, run_folder


@final
@dataclass(eq=False)
class Member:
    """A trial of a group.

    Attributes:
        settings: Its settings.
        job: What it trains.
        session: Its record and checkpoints.
        error: Why it has ended before its time.
    """

    settings: TrainSettings
    job: Job
    session: Session
    error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether it has nothing left to train."""
        return self.error is not None or bool(self.job.trainer.status)


def assemble_member(settings: TrainSettings, name: str) -> Job | Exception:
    """Make what a trial trains, or say why that cannot be.

    Args:
        settings: The trial, with a folder.
        name: What stands before the progress bar.
    """
    try:
        return assemble(settings, run_folder(settings), run_config(settings), name)
    except (UserError, RuntimeError) as error:
        return error


def open_member(settings: TrainSettings, job: Job, stack: ExitStack) -> Member | Exception:
    """Put a trial where its last checkpoint says that it stands, or say why that cannot be.

    Args:
        settings: The trial.
        job: What `assemble_member` gave.
        stack: Closes its record.
    """
    trainer = job.trainer
    # As `Trainer.fit` does: the checkpoints hold this state, from which nothing draws here.
    torch.manual_seed(trainer.seed)
    try:
        session = Session(trainer, Batches(job.batches, trainer.seed), settings.steps, stack)
    except UserError as error:
        return error
    trainer.status = trainer.ending(settings.steps, stalled=trainer.status == "stalled")
    return Member(settings, job, session)
