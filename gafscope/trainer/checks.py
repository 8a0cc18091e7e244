"""Refuse settings that cannot work, before anything is computed or written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gafscope.aggregation import Mean
from gafscope.errors import UserError

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer

_CHOICES = {
    "batch_norm": ("accepted", "all"),
    "on_stall": ("warn", "stop"),
    "precision": ("fp32", "bf16"),
}
_LEAST = {
    "microbatches": 1,
    "warmup_updates": 0,
    "validate_every": 1,
    "checkpoint_every": 1,
    "record_layers_every": 0,
}


def check_settings(trainer: Trainer) -> None:
    """Check a trainer's settings.

    Args:
        trainer: The trainer.

    Raises:
        UserError: Names the setting, the rule, the value and the remedy.
    """
    for name, allowed in _CHOICES.items():
        value = getattr(trainer, name)
        if value not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed)}, but is {value!r}.")
    for name, lowest in _LEAST.items():
        value = getattr(trainer, name)
        if value < lowest:
            raise UserError(f"{name} must be at least {lowest}, but is {value}.")
    if trainer.clip_norm is not None and not trainer.clip_norm > 0:
        raise UserError(f"clip_norm must be positive, but is {trainer.clip_norm}.")
    if trainer.microbatches < 2 and not isinstance(trainer.aggregator, Mean):
        raise UserError(
            f"microbatches={trainer.microbatches} leaves nothing to compare: a filter needs at "
            "least 2 microbatches a step. Use microbatches=2 or more, or the rule Mean."
        )


def check_macrobatch(samples: int, microbatches: int) -> None:
    """Check that a macrobatch can be cut.

    Args:
        samples: Samples in it.
        microbatches: k.

    Raises:
        UserError: If k does not divide the samples.
    """
    if samples % microbatches:
        raise UserError(
            f"A macrobatch must divide into microbatches={microbatches} equal parts, but this one "
            f"has {samples} samples; use a multiple of {microbatches}."
        )
