"""Loops that run under Hugging Face Accelerate."""

from __future__ import annotations

from typing import Any

from torch import nn

from gafscope.errors import UserError
from gafscope.instruments.scope import Scope
from gafscope.instruments.watch import watch

# These make their own steps; the optimizer's step in the loop does nothing.
_OWN_STEPS = ("DeepSpeedOptimizerWrapper", "MegatronLMOptimizerWrapper")


def watch_prepared(model: nn.Module, optimizer: Any, **options: Any) -> Scope:
    """Watch a loop whose model and optimizer `accelerator.prepare` has returned.

    `gafscope.instruments.watch`, with the GradScaler that Accelerate steps with.
    `accelerator.backward` divides the loss by `gradient_accumulation_steps` (k), so rows are 1/k,
    and entries of the Gramian 1/k^2, of what `gafscope.gramian` gives.

    Args:
        model: What `accelerator.prepare` returned for the model.
        optimizer: What it returned for the optimizer.
        **options: Any option of `watch` but `scaler`.

    Returns:
        The scope, not started yet.

    Raises:
        UserError: If the optimizer does not come from `accelerator.prepare`, its backend makes
            steps of its own (DeepSpeed, Megatron-LM), or `watch` refuses.

    Example:
        >>> from accelerate import Accelerator  # doctest: +SKIP
        >>> accelerator = Accelerator(gradient_accumulation_steps=4)  # doctest: +SKIP
        >>> model, optimizer, loader = accelerator.prepare(  # doctest: +SKIP
        ...     model, optimizer, loader
        ... )
        >>> with watch_prepared(model, optimizer, every=10) as scope:  # doctest: +SKIP
        ...     for inputs, targets in loader:
        ...         with accelerator.accumulate(model):
        ...             loss = criterion(model(inputs), targets)
        ...             accelerator.backward(scope.loss(loss))
        ...             optimizer.step()
        ...             optimizer.zero_grad()
    """
    kind = type(optimizer).__name__
    if kind in _OWN_STEPS:
        raise UserError(
            f"watch_prepared cannot see the steps of {kind}, which its backend makes by itself; "
            "train with one process or DistributedDataParallel, or measure with gafscope.gramian."
        )
    if not hasattr(optimizer, "scaler"):
        raise UserError(
            "watch_prepared takes the model and the optimizer that accelerator.prepare returned, "
            f"but was given {kind}; call prepare first, or use watch for a plain loop."
        )
    return watch(model, optimizer, scaler=optimizer.scaler, **options)
