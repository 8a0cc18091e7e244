"""Networks by name, fitted to the shape of the data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gafscope.errors import UserError, unknown_name
from gafscope.models._parts import require_sizes
from gafscope.models.cnn import cnn
from gafscope.models.gpt import gpt
from gafscope.models.mlp import mlp
from gafscope.models.resnet import resnet18, resnet34
from gafscope.models.vit import vit

_FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "vit": vit,
    "gpt": gpt,
}


def model_names() -> tuple[str, ...]:
    """Name the networks that `build_model` makes.

    Returns:
        The names.

    Example:
        >>> model_names()
        ('mlp', 'cnn', 'resnet18', 'resnet34', 'vit', 'gpt')
    """
    return tuple(_FACTORIES)


def build_model(
    name: str,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """Make the named image classifier or language model for samples of one shape.

    Args:
        name: One of `model_names()`.
        input_shape: Shape of one sample, (channels, height, width); any shape for "mlp";
            (context,) for "gpt".
        num_classes: Number of logits; for "gpt" the size of its vocabulary.
        seed: Seed of the initialisation. The weights are then drawn on the CPU, the same ones
            whatever the device is later, and the global random state is left as it was. None
            draws from the global random state.
        **options: Further options of the network, such as `hidden`, `width`, `norm` or `stem`.
            A vit's `patch_size` is, unless given, the smallest from 2 that cuts the image into
            at most 8 x 8 patches.

    Returns:
        The network, which maps (n, *input_shape) to (n, num_classes); a "gpt" maps tokens
        (n, context) to (n, context, num_classes).

    Raises:
        UserError: If the name or an option is unknown, the shape does not suit the network, or
            the network refuses an option's value.

    Example:
        >>> model = build_model("vit", input_shape=(1, 8, 8), num_classes=10, dim=12, seed=0)
        >>> model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """
    if name not in _FACTORIES:
        raise unknown_name("model", name, model_names())
    factory = _FACTORIES[name]
    classes = "vocab_size" if name == "gpt" else "num_classes"
    fitted = {classes: num_classes, **_fit(name, tuple(input_shape))}
    choices = [option for option in inspect.signature(factory).parameters if option not in fitted]
    for option in options:
        if option not in choices:
            raise unknown_name(f"option of model '{name}'", option, choices)
    if name == "vit" and "patch_size" not in options:
        options["patch_size"] = _patch_size(fitted["image_size"])
    if seed is None:
        return factory(**fitted, **options)
    # The CPU's generator alone: torch.manual_seed would reseed the accelerators as well.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return factory(**fitted, **options)


def _fit(name: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Give the arguments that the data's shape decides."""
    require_sizes(**{f"input_shape[{i}]": size for i, size in enumerate(shape)})
    if name == "mlp":
        return {"in_features": math.prod(shape)}
    if name == "gpt":
        if len(shape) != 1:
            raise UserError(
                f"Model 'gpt' takes tokens of shape (context,), but the samples have shape {shape};"
                " choose a network for images, or the data set 'text'."
            )
        return {"context": shape[0]}
    if len(shape) != 3:
        raise UserError(
            f"Model '{name}' takes images of shape (channels, height, width), but the samples have "
            f"shape {shape}; reshape them or choose the model 'mlp'."
        )
    channels, height, width = shape
    if name != "vit":
        return {"in_channels": channels}
    if height != width:
        raise UserError(
            f"Model 'vit' takes square images, but these have {height} x {width} pixels; "
            "crop or pad them."
        )
    return {"in_channels": channels, "image_size": height}


def _patch_size(image_size: int) -> int:
    sizes = range(min(2, image_size), image_size + 1)
    return next(size for size in sizes if image_size % size == 0 and image_size <= 8 * size)
