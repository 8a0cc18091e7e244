"""Parameters that broadcast: positions, class tokens, layer scale, temperatures."""

from __future__ import annotations

import torch
from torch import Tensor

from gafscope.gradients.ghost.calls.use import Maker, Use, reduced, unchanged
from gafscope.gradients.ghost.pieces import Piece, Rows


def add(use: Use) -> Maker | None:
    """Handle `x + p` and `p + x`."""
    return _sum(use, 1.0)


def subtract(use: Use) -> Maker | None:
    """Handle `x - p`; `p - x` is left to others."""
    return _sum(use, -1.0) if use.key(use.args[0]) is None else None


def _sum(use: Use, sign: float) -> Maker | None:
    (out,) = use.call.outputs
    tensors = [value for value in use.args if isinstance(value, Tensor)]
    if out is None or use.kwargs or len(use.args) != 2:
        return None
    shapes = [(key, value.shape) for value in tensors if (key := use.key(value)) is not None]
    if not all(_sampleless(shape, use.outputs[0], out.dim) for _, shape in shapes):
        return None

    def make(gradients: list[Tensor | None]) -> list[tuple[str, Piece]]:
        (gradient,) = gradients
        if gradient is None:
            return []
        rows = use.rows_first(gradient if sign > 0 else -gradient, out)
        return [(key, Rows(reduced(rows, shape))) for key, shape in shapes]

    return make


def multiply(use: Use) -> Maker | None:
    """Handle `x * p` and `p * x`."""
    (out,) = use.call.outputs
    if out is None or use.kwargs or len(use.args) != 2:
        return None
    a, b = use.args
    key, parameter, x = (use.key(a), a, b) if use.key(a) else (use.key(b), b, a)
    if key is None or not isinstance(x, Tensor) or use.key(x) or use.place(x) is None:
        return None
    shape = parameter.shape
    if not _sampleless(shape, use.outputs[0], out.dim):
        return None
    kept = unchanged(x)

    def make(gradients: list[Tensor | None]) -> list[tuple[str, Piece]]:
        (gradient,) = gradients
        if gradient is None:
            return []
        rows = use.rows_first(gradient * kept(), out)
        return [(key, Rows(reduced(rows, shape)))]

    return make


def expand(use: Use) -> Maker | None:
    """Handle `p.expand(n, ...)`: each sample has its own copy."""
    (out,) = use.call.outputs
    parameter = use.args[0]
    key = use.key(parameter)
    if key is None or out is None or not _sampleless(parameter.shape, use.outputs[0], out.dim):
        return None
    shape = parameter.shape

    def make(gradients: list[Tensor | None]) -> list[tuple[str, Piece]]:
        (gradient,) = gradients
        if gradient is None:
            return []
        return [(key, Rows(reduced(use.rows_first(gradient, out), shape)))]

    return make


def _sampleless(shape: torch.Size, output: Tensor, dim: int) -> bool:
    """Tell whether a parameter is broadcast along the output's sample dimension."""
    own = dim - (output.ndim - len(shape))
    return own < 0 or shape[own] == 1
