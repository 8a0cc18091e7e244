"""What a run writes down: its settings once, a row of scalars at each step."""

from __future__ import annotations

import hashlib
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim import Optimizer

from gafscope import geometry
from gafscope.aggregation import Recording, Rule
from gafscope.distributed import described_parameters
from gafscope.errors import UserError
from gafscope.gradients.problem import batch_size
from gafscope.trainer.macrobatch import Outcome

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer

# A rule with all its settings is shorter.
_LONG = 300
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
    step: int, outcome: Outcome, stepped: bool, norm: float, lr: float, rule: Rule
) -> dict[str, Any]:
    """Make the row of one step.

    Args:
        step: The step, from 0.
        outcome: What the macrobatch gave.
        stepped: Whether the optimizer stepped.
        norm: Norm of the combined gradient before clipping; NaN without a step.
        lr: Learning rate of the first parameter group.
        rule: The trainer's rule, which may add columns; in the warm-up as well, so that the
            columns are the same at all steps.

    Returns:
        Column name -> value. `accepted` counts microbatches, `not_finite` lists those with a
        NaN or an infinity, `distance_mean` is over all pairs and NaN where it is not known.

    Raises:
        UserError: If the rule adds a column that is there already.
    """
    decision, gramian = outcome.decision, outcome.gramian
    known = gramian is not None
    row = {
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
    added = dict(outcome.scalars)
    if isinstance(rule, Recording):
        added |= rule.scalars()
    for name in added:
        if name in row:
            raise UserError(
                f"The rule {type(rule).__name__} records a column '{name}', which every run has "
                "already; give it another name."
            )
    return row | added


def current_lr(optimizer: Optimizer) -> float:
    """Give the learning rate of the first parameter group.

    Args:
        optimizer: The optimizer; it may hold the rate as a tensor.
    """
    return float(optimizer.param_groups[0]["lr"])


def describe(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Describe a trainer for config.yaml.

    Args:
        trainer: The trainer.
        steps: Steps that it will make.

    Returns:
        Plain settings. They are the same in every process and however far the run is.
    """
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    settings = {name: getattr(trainer, name) for name in _DESCRIBED}
    return {
        "model": f"{type(trainer.model).__name__} ({parameters:,} parameters)",
        "rule": _name(trainer.aggregator),
        "gate": None if trainer.gate is None else _name(trainer.gate),
        "optimizer": _optimizer(trainer.optimizer),
        "lr": trainer.base_lr,
        "steps": int(steps),
        **{name: v.item() if isinstance(v, np.generic) else v for name, v in settings.items()},
    }


def described(trainer: Trainer, steps: int, validate: Any) -> dict[str, object]:
    """Describe all that every rank must have alike.

    Args:
        trainer: The trainer.
        steps: Steps that it will make.
        validate: The batch to validate on; None for none.

    Returns:
        What is compared -> what it is.
    """
    # Importing it would be a circle.
    version = getattr(sys.modules["gafscope"], "__version__", None)
    return {
        "version of gafscope": version,
        "version of torch": torch.__version__,
        **describe(trainer, steps),
        **(trainer.config or {}),
        "checkpoint_every": trainer.checkpoint_every,
        "run_dir": trainer.run_dir,
        "samples to validate on": 0 if validate is None else batch_size(validate),
        **described_parameters(trainer.parameters),
    }


def _name(thing: object) -> str:
    """Give the repr without addresses; of a long one (a yoked run's steps) the digest."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))
    if len(text) <= _LONG:
        return text
    return f"{type(thing).__name__} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _optimizer(optimizer: Optimizer) -> str:
    # What is off or not given is left out, so that options that a later torch adds do not matter.
    options = {
        name: value
        for name, value in optimizer.defaults.items()
        if name != "lr" and isinstance(value, (bool, int, float, str, tuple)) and value
    }
    return f"{type(optimizer).__name__}({', '.join(f'{k}={v}' for k, v in options.items())})"
