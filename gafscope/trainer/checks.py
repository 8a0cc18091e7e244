"""Refuse settings that cannot work, before anything is computed or written."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gafscope.aggregation import Decision, Mean, Weighting
from gafscope.errors import UserError
from gafscope.geometry import finite_rows

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
        _check_count(name, getattr(trainer, name), lowest)
    if trainer.max_updates is not None:
        _check_count("max_updates", trainer.max_updates, 1)
    if trainer.clip_norm is not None and not trainer.clip_norm > 0:
        raise UserError(f"clip_norm must be positive, but is {trainer.clip_norm}.")
    if not callable(trainer.aggregator) or isinstance(trainer.aggregator, type):
        raise UserError(
            "aggregator must be a rule, such as GAF(tau=0.97), Mean() or a function from a "
            f"Gramian to a Decision, but is {trainer.aggregator!r}."
        )
    if trainer.microbatches < 2 and not isinstance(trainer.aggregator, Mean):
        raise UserError(
            f"microbatches={trainer.microbatches} leaves nothing to compare: a filter needs at "
            "least 2 microbatches a step. Use microbatches=2 or more, or the rule Mean."
        )
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


def check_macrobatch(model: nn.Module, samples: int, microbatches: int) -> None:
    """Check that a macrobatch can be cut.

    Args:
        model: The model that it is for.
        samples: Samples in it.
        microbatches: k.

    Raises:
        UserError: If k does not divide the samples, or BatchNorm is left with single ones.
    """
    if samples % microbatches:
        raise UserError(
            f"A macrobatch must divide into microbatches={microbatches} equal parts, but this one "
            f"has {samples} samples; use a multiple of {microbatches}."
        )
    if samples == microbatches:
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                raise UserError(
                    "BatchNorm has no statistics of a single sample, but every microbatch has only "
                    f"one ('{name}' is a {type(module).__name__}). Use microbatches of at least 2 "
                    "samples, or GroupNorm."
                )


def check_decision(decision: Decision, matrix_kk: Float64[Tensor, "k k"], rule: Weighting) -> None:
    """Check that a decision, of a rule of the user's own perhaps, does not contradict itself.

    Args:
        decision: The decision.
        matrix_kk: The Gramian that it was taken on, (k, k).
        rule: The rule, for the message.

    Raises:
        UserError: If a field has another length than k, an accepted gradient or a weight is not
            finite, a rejected one has a weight, or a step is made of nothing.
    """
    k, accepted, weights = len(matrix_kk), decision.accepted, decision.weights
    found = {tuple(part.shape) for part in (weights, accepted, decision.distances, decision.finite)}
    problem = ""
    if found != {(k,)}:
        problem = f"has fields of shape {sorted(found)} for k = {k} micro-gradients"
    elif bool((accepted & ~finite_rows(matrix_kk)).any()):
        problem = "accepts a micro-gradient that is not finite"
    elif not bool(torch.isfinite(weights).all()):
        problem = f"has weights that are not finite, {weights.tolist()}"
    elif bool((weights[~accepted] != 0).any()):
        problem = "gives a weight to a micro-gradient that it does not accept"
    elif decision.step and not bool(accepted.any()):
        problem = "steps but accepts nothing (step=False skips)"
    if problem:
        raise UserError(
            f"The decision of the rule {type(rule).__name__} {problem}; correct the rule."
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
