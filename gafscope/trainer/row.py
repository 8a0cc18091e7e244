"""What a run writes down: its settings once, a row of scalars at each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gafscope import geometry
from gafscope.trainer.macrobatch import Outcome

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer

_DESCRIBED = (
    "microbatches",
    "batch_norm",
    "warmup_updates",
    "max_updates",
    "clip_norm",
    "precision",
    "validate_every",
    "record_layers_every",
    "seed",
)


def scalar_row(
    step: int, outcome: Outcome, stepped: bool, norm: float, lr: float
) -> dict[str, Any]:
    """Make the row of one step.

    Args:
        step: The step, from 0.
        outcome: What the macrobatch gave.
        stepped: Whether the optimizer stepped.
        norm: Norm of the combined gradient before clipping; NaN without a step.
        lr: Learning rate of the first parameter group.

    Returns:
        Column name -> value. `accepted` counts microbatches, `not_finite` lists those with a
        NaN or an infinity, `distance_mean` is over all pairs and NaN where it is not known.
    """
    decision, gramian = outcome.decision, outcome.gramian
    known = gramian is not None
    return {
        "step": step,
        "loss": float(np.mean(outcome.losses)),
        "accuracy": float(np.mean(outcome.accuracies)),
        "accepted": int(decision.accepted.sum()),
        "stepped": stepped,
        "distance_mean": geometry.mean_pairwise_distance(gramian.matrix) if known else float("nan"),
        "distance_to_sum": decision.distances.tolist(),
        "not_finite": (~decision.finite).nonzero().flatten().tolist(),
        "grad_norm": norm,
        "lr": lr,
    }


def describe(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Describe a trainer for config.yaml.

    Args:
        trainer: The trainer.
        steps: Steps that it will make.

    Returns:
        Plain settings.
    """
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return {
        "model": f"{type(trainer.model).__name__} ({parameters:,} parameters)",
        "rule": repr(trainer.aggregator),
        "gate": None if trainer.gate is None else type(trainer.gate).__name__,
        "optimizer": type(trainer.optimizer).__name__,
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "steps": steps,
        **{name: getattr(trainer, name) for name in _DESCRIBED},
    }
