"""The update of one step: the optimizer, the scheduler and BatchNorm's running statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gafscope.trainer.macrobatch import Outcome
from gafscope.trainer.per_sample import SAMPLES

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer


def apply_update(trainer: Trainer, outcome: Outcome) -> bool:
    """Step the optimizer if the rule and the gate say so.

    A parameter without a gradient is left alone, by momentum and weight decay too.

    Args:
        trainer: The trainer.
        outcome: What the macrobatch gave.

    Returns:
        Whether it stepped.
    """
    update = outcome.update
    if trainer.gate is not None and update is not None and not trainer.gate.opens(trainer.step):
        update = None
    if update is not None:
        parameters = list(trainer.parameters.values())
        for parameter, gradient in zip(parameters, update.tensors, strict=True):
            parameter.grad = gradient
        if trainer.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, trainer.clip_norm)
        trainer.optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        if trainer.scheduler is not None and not isinstance(trainer.scheduler, ReduceLROnPlateau):
            trainer.scheduler.step()
        trainer.updates += 1
        trainer.changed = True
    stepped = update is not None
    moved = outcome.decision.accepted & stepped
    if trainer.batch_norm == "all":
        moved = outcome.decision.finite
    if trainer.microbatches != SAMPLES:  # single samples move no statistics
        trainer.statistics.commit(moved.nonzero().flatten().tolist())
    return stepped
