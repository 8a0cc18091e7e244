"""Which parameters are watched, and the loops that cannot be."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from gafscope.errors import UserError

_WRAPPERS = ("DistributedDataParallel", "DataParallel")


def inner_model(model: nn.Module) -> nn.Module:
    """Give the model inside `torch.compile` and data-parallel wrappers, whose names are plain.

    Args:
        model: The model as the loop has it.
    """
    while True:
        if isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        elif type(model).__name__ in _WRAPPERS:
            model = model.get_submodule("module")
        else:
            return model


def is_distributed(model: nn.Module) -> bool:
    """Tell whether `DistributedDataParallel` averages this model's gradients.

    Args:
        model: The model as the loop has it.
    """
    model = getattr(model, "_orig_mod", model)
    return type(model).__name__ == "DistributedDataParallel"


def as_optimizers(optimizer: Any) -> list[Optimizer]:
    """List the optimizers, without wrappers such as Accelerate's.

    Args:
        optimizer: One, or several.

    Returns:
        At least one.

    Raises:
        UserError: If there is none, something else among them, or one that evaluates its closure
            several times a step.
    """
    given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    found = []
    for one in given:
        while isinstance(inner := getattr(one, "__dict__", {}).get("optimizer"), Optimizer):
            one = inner
        if not isinstance(one, Optimizer):
            raise UserError(
                f"watch needs the loop's torch optimizer, or a list of them, but was given {one!r}."
            )
        if isinstance(one, LBFGS):
            raise UserError(
                "LBFGS runs its closure, and with it the backward, several times a step at "
                "different weights, so there is no set of micro-gradients of one step; use an "
                "optimizer that takes one gradient a step, or gafscope.gramian between the steps."
            )
        found.append(one)
    if not found:
        raise UserError("watch needs the loop's torch optimizer, but was given an empty list.")
    return found


def watched_parameters(
    model: nn.Module, optimizers: Sequence[Optimizer]
) -> dict[str, nn.Parameter]:
    """Give the trainable parameters that the optimizers own, tied ones once.

    Args:
        model: The model as the loop has it.
        optimizers: The optimizers.

    Returns:
        Name -> parameter, in the model's order.

    Raises:
        UserError: If the optimizers hold parameters of another model or none that is trainable,
            or the parameters are sharded, complex, or have sparse gradients.
    """
    inner = inner_model(model)
    named = dict(inner.named_parameters())
    owned = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    foreign = len(owned - {id(parameter) for parameter in named.values()})
    names = " and ".join(type(one).__name__ for one in optimizers)
    if foreign:
        raise UserError(
            f"The optimizer ({names}) holds {foreign} parameters that are not the model's "
            f"({type(inner).__name__}): make it from model.parameters() of the model that is "
            "trained (after a copy or a change of it), or watch a module that holds them all, such "
            "as nn.ModuleList([model, criterion])."
        )
    found = {name: p for name, p in named.items() if p.requires_grad and id(p) in owned}
    if not found:
        raise UserError(
            f"The optimizer ({names}) owns no trainable parameter of the model "
            f"({type(inner).__name__}), so there is nothing to watch; make it from "
            "model.parameters(), and unfreeze some with parameter.requires_grad_(True)."
        )
    _check_kinds(inner, found)
    return found


def check_unfiltered(optimizers: Sequence[Optimizer]) -> None:
    """Refuse a second filter on the same gradients.

    Args:
        optimizers: The optimizers.

    Raises:
        UserError: If a watch that filters has its hooks on one of them.
    """
    for one in optimizers:
        for hook in one._optimizer_step_pre_hooks.values():
            if getattr(getattr(hook, "__self__", None), "filters", False) is True:
                raise UserError(
                    f"The gradients of this {type(one).__name__} are filtered by another watch "
                    "already; stop that one, or watch without filter=... to observe."
                )


def empty_gradients(optimizer: Optimizer) -> None:
    """Leave nothing for an optimizer to step on; zeros would still move momentum.

    Args:
        optimizer: The optimizer.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _check_kinds(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    tensors = sys.modules.get("torch.distributed.tensor")
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise UserError(
                f"The parameter '{name}' is complex, whose inner products are not defined here; "
                "keep it as two real ones (torch.view_as_real)."
            )
        if tensors is not None and isinstance(parameter, tensors.DTensor):
            raise _sharded(name)
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise _sharded(name or "the model")
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise UserError(
                f"'{name}' has sparse gradients, whose inner products are not computed; make it "
                f"with {type(module).__name__}(..., sparse=False)."
            )


def _sharded(name: str) -> UserError:
    return UserError(
        f"'{name}' is sharded over several processes (FSDP, DTensor), so that no process sees a "
        "whole micro-gradient; use gafscope.distribute, which adds up the shards' inner products."
    )
