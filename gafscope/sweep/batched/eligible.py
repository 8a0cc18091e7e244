"""Which trials can be trained together, and which with which."""

from __future__ import annotations

import json
from dataclasses import asdict

from gafscope.aggregation import Calibrating, RowRule
from gafscope.errors import UserError
from gafscope.trainer import TrainSettings
from gafscope.trainer.options import make_rule, parse_options

# What may differ from trial to trial in a batch: each trial has its own.
_OWN = (
    "label_noise",
    "rule",
    "tau",
    "rule_options",
    "lr",
    "momentum",
    "weight_decay",
    "warmup_updates",
    "seed",
    "sampling_seed",
    "run_dir",
    "progress",
)
# What a batch does as it is by default only; anything else is trained one by one.
_PLAIN: dict[str, object] = {
    "optimizer": "sgd",
    "scheduler": "none",
    "clip_norm": None,
    "precision": "fp32",
    "compile": False,
    "channels_last": False,
    "augment": False,
    "max_updates": None,
    "yoked_to": None,
    "skip_rate": None,
    "on_stall": "warn",
}
# Options of the networks, and the values without BatchNorm and dropout.
_MODELS: dict[str, dict[str, tuple[object, ...]]] = {
    "mlp": {"norm": (None, "layer"), "dropout": (0, 0.0)},
    "vit": {"dropout": (0, 0.0)},
}


def can_batch(settings: TrainSettings) -> bool:
    """Tell whether a trial can be trained together with others of its shape.

    It can with an MLP or a ViT without BatchNorm and dropout, SGD, and any rule that decides on
    inner products alone. Convolutions cannot: where each trial has weights of its own, torch has
    slow grouped ones only. Whether it is worth while is measured when a batch begins.

    Args:
        settings: The trial.

    Example:
        >>> can_batch(TrainSettings()), can_batch(TrainSettings(rule="coordinate-median"))
        (True, False)
        >>> can_batch(TrainSettings(model_options={"norm": "batch"}))
        False
    """
    options = parse_options(settings.model_options)
    allowed = _MODELS.get(settings.model)
    if allowed is None:
        return False
    if any(options.get(name, values[0]) not in values for name, values in allowed.items()):
        return False
    if any(getattr(settings, name) != value for name, value in _PLAIN.items()):
        return False
    if isinstance(settings.microbatches, str):
        return False
    try:
        rule = make_rule(settings)
    except UserError:
        return False  # training it alone says what is wrong
    return not isinstance(rule, RowRule | Calibrating)


def batch_key(settings: TrainSettings) -> str | None:
    """Name the shape of a trial.

    Args:
        settings: The trial.

    Returns:
        A text that trials have in common exactly when they can be trained together; None where it
        must be trained alone.
    """
    if not can_batch(settings):
        return None
    shared = {name: value for name, value in asdict(settings).items() if name not in _OWN}
    return json.dumps(shared, sort_keys=True)
