"""Refuse settings that cannot work, before anything is computed or written."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gafscope.aggregation import Mean, RowRule, Rule, Stateful, Weighting, rows_needed
from gafscope.errors import UserError

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer

_CHOICES = {
    "batch_norm": ("accepted", "all"),
    "on_stall": ("warn", "stop"),
    "precision": ("fp32", "bf16"),
}
_LEAST = {
    "warmup_updates": 0,
    "validate_every": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
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
        _check_count(name, getattr(trainer, name), lowest)
    if trainer.max_updates is not None:
        _check_count("max_updates", trainer.max_updates, 1)
    if trainer.clip_norm is not None and not trainer.clip_norm > 0:
        raise UserError(f"clip_norm must be positive, but is {trainer.clip_norm}.")
    rule = trainer.aggregator
    if isinstance(rule, type) or not isinstance(rule, Weighting | RowRule):
        raise UserError(
            "aggregator must be a rule, such as GAF(tau=0.97), Mean() or a function from a "
            f"Gramian to a Decision, but is {rule!r}."
        )
    _check_microbatches(trainer)
    _check_optimizer(trainer)


def check_run(trainer: Trainer, steps: int, validates: bool) -> None:
    """Check what `fit` was given.

    Args:
        trainer: The trainer.
        steps: Steps in all.
        validates: Whether there is a batch to validate on.

    Raises:
        UserError: If there are no steps to make, or a scheduler waits for validations in vain.
    """
    _check_count("steps", steps, 1)
    if isinstance(trainer.scheduler, ReduceLROnPlateau) and not validates:
        raise UserError(
            "ReduceLROnPlateau steps after validations, but there is nothing to validate on: give "
            "fit a batch with validate=..., or use another scheduler."
        )


def check_plateau(scheduler: ReduceLROnPlateau, metric: float) -> None:
    """Check that a validation gave what ReduceLROnPlateau looks at.

    Args:
        scheduler: The scheduler.
        metric: The accuracy in mode "max", else the loss.

    Raises:
        UserError: If it looks at an accuracy and there is none.
    """
    if scheduler.mode == "max" and math.isnan(metric):
        raise UserError(
            "ReduceLROnPlateau with mode='max' looks at the validation accuracy, but this loss "
            "gives none; use mode='min', which looks at the validation loss, or supervised(...)."
        )


def check_macrobatch(trainer: Trainer, samples: int) -> None:
    """Check that a macrobatch can be cut.

    Args:
        trainer: The trainer.
        samples: Samples in the macrobatch.

    Raises:
        UserError: If k does not divide the samples, BatchNorm is left with single ones, or one
            sample alone should be compared.
    """
    microbatches = trainer.microbatches
    if isinstance(microbatches, str):
        if samples < 2 and _compares(trainer.aggregator):
            raise UserError(
                "A macrobatch of 1 sample leaves nothing to compare: with microbatches='samples' a "
                "filter needs at least 2 samples a step. Use larger macrobatches (and drop_last="
                "True for a DataLoader whose last one is incomplete), or the rule Mean."
            )
        return
    if samples % microbatches:
        raise UserError(
            f"A macrobatch must divide into microbatches={microbatches} equal parts, but this one "
            f"has {samples} samples; use a multiple of {microbatches}."
        )
    if samples == microbatches:
        for name, module in trainer.model.named_modules():
            if isinstance(module, _BatchNorm):
                raise UserError(
                    "BatchNorm has no statistics of a single sample, but every microbatch has only "
                    f"one ('{name}' is a {type(module).__name__}). Use microbatches of at least 2 "
                    "samples, or GroupNorm."
                )


def _check_microbatches(trainer: Trainer) -> None:
    microbatches = trainer.microbatches
    if microbatches == "samples":
        _check_single_samples(trainer)
        return
    if not isinstance(microbatches, Integral):
        raise UserError(
            f"microbatches must be a whole number or 'samples', but is {microbatches!r}."
        )
    _check_count("microbatches", microbatches, 1)
    if microbatches < 2 and _compares(trainer.aggregator):
        raise UserError(
            f"microbatches={microbatches} leaves nothing to compare: a filter needs at "
            "least 2 microbatches a step. Use microbatches=2 or more, or the rule Mean."
        )


def _compares(rule: Rule) -> bool:
    """Tell whether a rule compares the microbatches of one step with each other."""
    # A gate compares with earlier steps.
    return not isinstance(rule, Mean) and not (
        isinstance(rule, RowRule) and isinstance(rule, Stateful)
    )


def _check_single_samples(trainer: Trainer) -> None:
    """Refuse what single samples have not, or not alone."""
    if isinstance(trainer.aggregator, RowRule):
        raise rows_needed(
            trainer.aggregator, "with microbatches='samples', where only their Gramian is kept"
        )
    if trainer.compile:
        raise UserError(
            "compile=True does not go with microbatches='samples', whose gradients are taken from "
            "the uncompiled model; leave it out."
        )
    modes = [(module, module.training) for module in trainer.model.modules()]
    trainer.model.train()
    # Layers that a model keeps in evaluation mode while it trains couple nothing.
    active = [(name, m) for name, m in trainer.model.named_modules() if m.training]
    for module, training in modes:
        module.training = training
    for name, module in active:
        if isinstance(module, _BatchNorm):
            raise UserError(
                "Per-sample gradients with BatchNorm in training mode do not exist: its batch "
                f"statistics couple the samples ('{name}' is a {type(module).__name__}). Use "
                "GroupNorm, or microbatches of at least 2 samples."
            )
        if isinstance(module, _InstanceNorm) and module.running_mean is not None:
            raise UserError(
                "microbatches='samples' moves no running statistics, but "
                f"'{name}' ({type(module).__name__}) keeps some; make it with "
                "track_running_stats=False, or use microbatches of at least 2 samples."
            )


def _check_count(name: str, value: int, lowest: int) -> None:
    if not isinstance(value, Integral):
        raise UserError(f"{name} must be a whole number, but is {value!r}.")
    if value < lowest:
        raise UserError(f"{name} must be at least {lowest}, but is {value}.")


def _check_optimizer(trainer: Trainer) -> None:
    mine = {id(parameter) for parameter in trainer.model.parameters()}
    theirs = [
        parameter for group in trainer.optimizer.param_groups for parameter in group["params"]
    ]
    if any(id(parameter) not in mine for parameter in theirs):
        raise UserError(
            f"The optimizer ({type(trainer.optimizer).__name__}) holds parameters that are not the "
            "model's, so they would never get a gradient: make it from model.parameters() of the "
            "model that is trained (after a copy or a change of it), and put a loss's own "
            "parameters into the model."
        )
