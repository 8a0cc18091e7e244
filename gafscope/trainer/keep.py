"""What is done with a step that was made: advice, validation, and its row in the record."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from torch.optim.lr_scheduler import ReduceLROnPlateau

from gafscope.records import RunWriter
from gafscope.trainer.checks import check_plateau
from gafscope.trainer.evaluate import evaluate
from gafscope.trainer.macrobatch import Outcome
from gafscope.trainer.row import scalar_row

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer


@final
@dataclass(frozen=True, eq=False)
class Made:
    """A step that was made.

    Attributes:
        step: The step, from 0.
        outcome: What its macrobatch gave.
        stepped: Whether the optimizer stepped.
        lr: The learning rate.
        seconds: How long it took, without a validation.
    """

    step: int
    outcome: Outcome
    stepped: bool
    lr: float
    seconds: float


def keep(
    trainer: Trainer, made: Sequence[Made], validate: Any, writer: RunWriter | None
) -> tuple[dict[str, Any], str | None]:
    """Record steps.

    Args:
        trainer: The trainer, as it is after the last of them.
        made: The steps, none or more.
        validate: A batch to validate on after the last of them; None does not validate.
        writer: The record; None keeps the rows in memory, if the run has no folder.

    Returns:
        The newest row, and advice for the user when the run has just stalled.

    Raises:
        UserError: If the run has diverged, or a rule's column is there already.
    """
    row, advice = trainer.row, None
    for one in made:
        outcome = one.outcome
        advice = trainer.watchdog.see(one.step, outcome.decision) or advice
        norm = outcome.norm if one.stepped else math.nan
        row = scalar_row(one.step, outcome, one.stepped, norm, one.lr, trainer.aggregator)
        started = time.perf_counter()
        if validate is not None and one is made[-1]:
            row |= _validate(trainer, one.step, validate)
        row["seconds"] = one.seconds + time.perf_counter() - started
        if writer is None and trainer.run_dir is None:
            trainer.rows.append(row)
        elif writer is not None:
            writer.scalars(row)
            if (gramian := outcome.gramian) is not None and outcome.recorded:
                writer.gramians(one.step, gramian.matrix, gramian.layers)
    return row, advice


def _validate(trainer: Trainer, step: int, batch: Any) -> dict[str, float]:
    result = evaluate(trainer.model, trainer.loss, batch, trainer.ranks)
    trainer.best.see(step, trainer.model, result)
    if isinstance(trainer.scheduler, ReduceLROnPlateau) and trainer.changed:
        metric = result["accuracy" if trainer.scheduler.mode == "max" else "loss"]
        check_plateau(trainer.scheduler, metric)
        trainer.scheduler.step(metric)
    trainer.changed = False
    return {f"validation_{name}": value for name, value in result.items()}
