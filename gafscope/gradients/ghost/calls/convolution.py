"""Convolutions of one to three dimensions, plain, strided, dilated, grouped and transposed."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from gafscope.gradients.ghost.calls.use import Maker, Use, unchanged
from gafscope.gradients.ghost.convolution import Convolution, Geometry
from gafscope.gradients.ghost.pieces import Outer, Piece, Rows


def convolution(use: Use) -> Maker | None:
    """Handle `conv1d`, `conv2d` and `conv3d`."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    x, weight, bias, stride, padding, dilation, groups = use.bind(*names)
    dims = weight.ndim - 2
    kernel = tuple(weight.shape[2:])
    dilation = _each(dilation, dims, 1)
    before = after = None
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = tuple(t // 2 for t in total)
        after = tuple(t - t // 2 for t in total)
        if before == after:
            padding, after = before, None
        else:
            padding = 0
    elif padding == "valid":
        padding = 0
    else:
        after = None
    geometry = Geometry(
        kernel=kernel,
        stride=_each(stride, dims, 1),
        padding=_each(padding, dims, 0),
        dilation=dilation,
        transposed=False,
        output_padding=(0,) * dims,
        groups=1 if groups is None else groups,
    )
    pads = None
    if before is not None and after is not None:
        pads = [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]
    return _handle(use, x, weight, bias, geometry, pads)


def transposed_convolution(use: Use) -> Maker | None:
    """Handle `conv_transpose1d`, `conv_transpose2d` and `conv_transpose3d`."""
    x, weight, bias, stride, padding, output_padding, groups, dilation = use.bind(
        "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"
    )
    dims = weight.ndim - 2
    geometry = Geometry(
        kernel=tuple(weight.shape[2:]),
        stride=_each(stride, dims, 1),
        padding=_each(padding, dims, 0),
        dilation=_each(dilation, dims, 1),
        transposed=True,
        output_padding=_each(output_padding, dims, 0),
        groups=1 if groups is None else groups,
    )
    return _handle(use, x, weight, bias, geometry, None)


def _each(value: Any, dims: int, default: int) -> tuple[int, ...]:
    if value is None:
        value = default
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _handle(
    use: Use, x: Any, weight: Any, bias: Any, geometry: Geometry, pads: list[int] | None
) -> Maker | None:
    place, (out,) = use.place(x), use.call.outputs
    weight_key, bias_key = use.key(weight), use.key(bias)
    first = place is not None and out is not None and place.dim == 0 == out.dim
    other = use.place(weight) or use.key(x) or (bias is not None and use.place(bias))
    if not first or other or x.ndim != weight.ndim:
        return None
    kept, shape = unchanged(x), weight.shape

    def make(gradients: list[Tensor | None]) -> list[tuple[str, Piece]]:
        (gradient,) = gradients
        if gradient is None:
            return []
        assert place is not None
        outputs = use.rows_first(gradient, out)
        made: list[tuple[str, Piece]] = []
        if weight_key:
            inputs = use.rows_first(kept(), out).flatten(0, 1).to(gradient.dtype)
            if pads is not None:
                inputs = F.pad(inputs, pads)
            made.append((weight_key, _piece(inputs, outputs, shape, geometry, use.k)))
        if bias_key:
            made.append((bias_key, Rows(outputs.flatten(3).sum((1, 3)))))
        return made

    return make


def _piece(
    inputs: Tensor, outputs: Tensor, shape: Any, geometry: Geometry, k: int
) -> Convolution | Outer:
    """Take a convolution of a single entry for what it is: a dense layer on every pixel."""
    pointwise = geometry.plain and set(geometry.kernel) == {1} and not any(geometry.padding)
    if not pointwise:
        return Convolution(inputs, outputs.flatten(0, 1), shape, geometry, k)
    steps = tuple(slice(None, None, step) for step in geometry.stride)
    seen = inputs[(slice(None), slice(None), *steps)]
    return Outer(_pixels(outputs.flatten(0, 1), k), _pixels(seen, k))


def _pixels(maps: Tensor, k: int) -> Tensor:
    """Lay (n, C, *pixels) out as (k, T, C)."""
    return maps.movedim(1, -1).reshape(k, -1, maps.shape[1])
