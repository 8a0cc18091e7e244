"""Why a trainer's decisions cannot stay on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import LBFGS, SGD, SparseAdam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gafscope.aggregation import Calibrating, Fold, Observing, Rule, Stateful
from gafscope.trainer.on_device.statistics import normalising_layers

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer


def fixed_fold(rule: Rule) -> Fold | None:
    """Give how a rule runs if that is the same at every step.

    Args:
        rule: The rule.

    Returns:
        The fold of a rule that visits in order and learns nothing on the way; else None.
    """
    if isinstance(rule, Observing | Calibrating | Stateful):
        return None
    return getattr(rule, "fold", None)


def device_obstacle(trainer: Trainer) -> str | None:
    """Find what a step on the device could not do.

    Args:
        trainer: The trainer.

    Returns:
        The first obstacle, in words; None where there is none.
    """
    optimizer, scheduler = trainer.optimizer, trainer.scheduler
    parameters = trainer.parameters.values()
    # Counters that are no tensors cannot be masked; torch's own optimizers have none.
    masked = type(optimizer).__module__.startswith("torch.optim")
    obstacles = {
        f"the rule {trainer.aggregator!r} does not visit in order with a fixed threshold": (
            fixed_fold(trainer.aggregator) is None
        ),
        "microbatches is 'samples'": isinstance(trainer.microbatches, str),
        "several processes decide together": trainer.ranks is not None,
        "max_updates must be counted at every step": trainer.max_updates is not None,
        "the scheduler steps after every update": not isinstance(
            scheduler, ReduceLROnPlateau | None
        ),
        f"the state of {type(optimizer).__name__} may not be all tensors": (
            not masked or isinstance(optimizer, LBFGS | SparseAdam)
        ),
        f"{type(optimizer).__name__} keeps its counters on the processor": (
            trainer.device.type == "cuda"
            and not isinstance(optimizer, SGD)
            and any("capturable" not in group for group in optimizer.param_groups)
        ),
        "the parameters have several types or devices": (
            len({(parameter.dtype, parameter.device) for parameter in parameters}) > 1
        ),
        "a normalisation averages over all forwards (momentum=None)": any(
            layer.momentum is None for layer in normalising_layers(trainer.model)
        ),
        "an instance normalisation keeps running statistics": any(
            isinstance(module, _InstanceNorm) and module.running_mean is not None
            for module in trainer.model.modules()
        ),
    }
    return next((words for words, there in obstacles.items() if there), None)
