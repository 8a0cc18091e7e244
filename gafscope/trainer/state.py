"""What a run's state is made of, so that it can go on bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from gafscope.aggregation import Stateful
from gafscope.errors import UserError
from gafscope.trainer.batches import Batches

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer


def capture(trainer: Trainer, batches: Batches, position: Mapping[str, int]) -> dict[str, Any]:
    """Collect a trainer's state for a checkpoint.

    Args:
        trainer: The trainer, between two steps.
        batches: Its macrobatches.
        position: Where the record stands.

    Returns:
        Tensors, numbers, strings and containers of these.
    """
    state: dict[str, Any] = {
        "step": trainer.step,
        "updates": trainer.updates,
        "changed": trainer.changed,
        "status": trainer.status,
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "best": trainer.best.state_dict(),
        "watchdog": trainer.watchdog.state_dict(),
        "random": random_state(),
        "batches": batches.state_dict(),
        "position": dict(position),
    }
    if trainer.scheduler is not None:
        state["scheduler"] = trainer.scheduler.state_dict()
    if isinstance(trainer.aggregator, Stateful):
        state["rule"] = trainer.aggregator.state_dict()
    # NumPy's scalars, such as a learning rate out of a grid, would not be read back safely.
    return pytree.tree_map(
        lambda leaf: leaf.item() if isinstance(leaf, np.generic) else leaf, state
    )


def restore(trainer: Trainer, batches: Batches, state: Mapping[str, Any]) -> None:
    """Put a trainer into the state of a checkpoint.

    Args:
        trainer: A trainer that was made as the saved one was.
        batches: Its macrobatches.
        state: What `capture` gave.

    Raises:
        UserError: If the checkpoint is of another model, optimizer, scheduler, rule or kind of
            data.
    """
    try:
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.scheduler is not None:
            trainer.scheduler.load_state_dict(state["scheduler"])
        if isinstance(trainer.aggregator, Stateful):
            trainer.aggregator.load_state_dict(state["rule"])
        trainer.best.load_state_dict(state["best"])
        trainer.watchdog.load_state_dict(state["watchdog"])
        trainer.step, trainer.updates = state["step"], state["updates"]
        trainer.changed, trainer.status = state["changed"], state["status"]
        restore_random_state(state["random"])
        batches.load_state_dict(state["batches"])
    except UserError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The checkpoint in {trainer.run_dir} does not fit this model, optimizer, scheduler "
            f"or rule: {reason}. Use the settings that it was made with, or another run folder."
        ) from error


def random_state() -> dict[str, Any]:
    """Give the state of torch's global generators (CPU and every CUDA device)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put torch's global generators back.

    Args:
        state: What `random_state` gave; CUDA states are put back on as many devices as exist.
    """
    torch.set_rng_state(state["cpu"])
    for device, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(value, device)
