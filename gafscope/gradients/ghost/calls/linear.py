"""Products with a matrix parameter: `linear`, `matmul`, `addmm` and their spellings."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gafscope.gradients.ghost.calls.use import Maker, Use, reduced, unchanged
from gafscope.gradients.ghost.pieces import Outer, Piece, Rows


def linear(use: Use) -> Maker | None:
    """Handle `x W^T + b`: the row of W is `sum_t b_t x_t^T`."""
    x, weight, bias = use.bind("input", "weight", "bias")
    return _dense(use, x, weight, bias, transposed=False)


def matmul(use: Use) -> Maker | None:
    """Handle `x W`."""
    x, weight = use.bind("input", "other")
    if x is None:
        x, weight = use.args[0], use.kwargs.get("mat2")
    return _dense(use, x, weight, None, transposed=True)


def addmm(use: Use) -> Maker | None:
    """Handle `b + x W`."""
    bias, x, weight = use.bind("input", "mat1", "mat2")
    if set(use.kwargs) - {"input", "mat1", "mat2"}:
        return None
    return _dense(use, x, weight, bias, transposed=True)


def _dense(use: Use, x: Any, weight: Any, bias: Any, transposed: bool) -> Maker | None:
    place, (out,) = use.place(x), use.call.outputs
    if place is None or out is None or use.key(x) or not isinstance(weight, Tensor):
        return None
    weight_key, bias_key = use.key(weight), use.key(bias)
    same = place.dim == out.dim and place.merged == out.merged and place.dim < x.ndim - 1
    if weight.ndim != 2 or not same or use.place(weight) or (bias is not None and use.place(bias)):
        return None
    # The orders of samples in the input and in the output are those of one dimension.
    kept, shape = unchanged(x), None if bias is None else bias.shape

    def make(gradients: list[Tensor | None]) -> list[tuple[str, Piece]]:
        (gradient,) = gradients
        if gradient is None:
            return []
        made: list[tuple[str, Piece]] = []
        outputs = use.positions(gradient, out)
        if weight_key:
            inputs = use.positions(kept(), out).to(gradient.dtype)
            made.append(
                (weight_key, Outer(inputs, outputs) if transposed else Outer(outputs, inputs))
            )
        if bias_key and shape is not None:
            made.append((bias_key, Rows(reduced(outputs, shape))))
        return made

    return make
