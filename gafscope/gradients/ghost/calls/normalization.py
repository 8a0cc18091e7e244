"""Normalisation layers: the row of the scale is `sum_t b_t x^_t`, that of the shift `sum_t b_t`.

x^ is the normalised input and b the gradient of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gafscope.gradients.ghost.calls.use import Maker, Use, reduced, unchanged
from gafscope.gradients.ghost.pieces import Piece, Rows
from gafscope.gradients.ghost.places import Unsupported


def layer_norm(use: Use) -> Maker | None:
    """Handle `layer_norm`."""
    x, shape, weight, bias, eps = use.bind("input", "normalized_shape", "weight", "bias", "eps")
    return _handle(use, x, weight, bias, lambda x: F.layer_norm(x, shape, eps=_eps(eps)))


def rms_norm(use: Use) -> Maker | None:
    """Handle `rms_norm`."""
    x, shape, weight, eps = use.bind("input", "normalized_shape", "weight", "eps")
    return _handle(use, x, weight, None, lambda x: F.rms_norm(x, shape, eps=eps))


def group_norm(use: Use) -> Maker | None:
    """Handle `group_norm`."""
    x, groups, weight, bias, eps = use.bind("input", "num_groups", "weight", "bias", "eps")
    return _handle(
        use, x, weight, bias, lambda x: F.group_norm(x, groups, eps=_eps(eps)), channels=1
    )


def instance_norm(use: Use) -> Maker | None:
    """Handle `instance_norm`."""
    x, weight, bias, mean, var, own, _, eps = use.bind(
        "input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum",
        "eps",
    )  # fmt: skip

    def normalise(x: Tensor) -> Tensor:
        if own:
            # Without the running statistics, which would be updated.
            return F.instance_norm(x, eps=_eps(eps))
        return F.instance_norm(x, mean, var, use_input_stats=False, eps=_eps(eps))

    return _handle(use, x, weight, bias, normalise, channels=1)


def batch_norm(use: Use) -> Maker | None:
    """Handle `batch_norm` in evaluation mode."""
    x, weight, bias, mean, var, training, _, eps = use.bind(
        "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"
    )
    if training:
        raise Unsupported("BatchNorm in training mode couples the samples of a batch")

    def normalise(x: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, eps=_eps(eps))

    return _handle(use, x, weight, bias, normalise, channels=1)


def _eps(value: Any) -> float:
    return 1e-5 if value is None else value


def _handle(
    use: Use,
    x: Any,
    weight: Any,
    bias: Any,
    normalise: Callable[[Tensor], Tensor],
    channels: int | None = None,
) -> Maker | None:
    place, (out,) = use.place(x), use.call.outputs
    if place is None or out is None or place.dim != out.dim or use.key(x):
        return None
    kept = unchanged(x)
    weight_key, bias_key = use.key(weight), use.key(bias)
    # Parameters of (C,) stand for (C, 1, 1 ...) where the channels are in dimension 1.
    given = weight if weight_key else bias
    assert isinstance(given, Tensor)
    wide = given.shape if channels is None else torch.Size((*given.shape, *[1] * (x.ndim - 2)))

    def make(gradients: list[Tensor | None]) -> list[tuple[str, Piece]]:
        (gradient,) = gradients
        if gradient is None:
            return []
        made: list[tuple[str, Piece]] = []
        if weight_key:
            scaled = gradient * normalise(kept().to(gradient.dtype))
            made.append((weight_key, Rows(reduced(use.rows_first(scaled, out), wide))))
        if bias_key:
            made.append((bias_key, Rows(reduced(use.rows_first(gradient, out), wide))))
        return made

    return make
