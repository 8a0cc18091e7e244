"""One pass over all microbatches: Gramians, losses, and what is needed to add rows up.

Shape legend: k microbatches, one row each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

import torch
from torch import Tensor

from gafscope import geometry
from gafscope.gradients.budget import Plan
from gafscope.gradients.ghost import Products, ghost_in_blocks
from gafscope.gradients.loop import loop_rows
from gafscope.gradients.problem import Problem
from gafscope.gradients.types import GradientRows, flat_rows
from gafscope.gradients.vmap import vmap_rows

Rows: TypeAlias = dict[str, Tensor]
_ROW_ENGINES: dict[str, Callable[[Problem, int, int], tuple[Rows, Tensor]]] = {
    "loop": loop_rows,
    "vmap": vmap_rows,
}


@final
@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass over all microbatches gave.

    Attributes:
        layers: Parameter name -> (k, k) float64 Gramian.
        losses: (k,), the mean losses.
        combine: (k,) weights -> parameter name -> `sum_i w_i g_i`, without the rows of weight 0.
            From the rows where all are held, else from a second pass; call it in `untouched`.
        notes: What the reader should know.
    """

    layers: Rows
    losses: Tensor
    combine: Callable[[Tensor], Rows]
    notes: tuple[str, ...] = ()


def compute_rows(
    problem: Problem, engine: str, chunk: int, start: int, stop: int
) -> tuple[Rows, Tensor]:
    """Differentiate microbatches start..stop-1, at most `chunk` at a time.

    Args:
        problem: The measurement.
        engine: "loop" or "vmap".
        chunk: As in `Plan`.
        start: First microbatch.
        stop: One past the last.

    Returns:
        Parameter name -> (stop - start, *parameter.shape), and the mean losses, (stop - start,).
    """
    if chunk >= stop - start:
        return _ROW_ENGINES[engine](problem, start, stop)
    named = {
        name: torch.empty(stop - start, *p.shape, dtype=p.dtype, device=p.device)
        for name, p in problem.parameters.items()
    }
    losses = []
    for first in range(start, stop, chunk):
        last = min(first + chunk, stop)
        part, part_losses = _ROW_ENGINES[engine](problem, first, last)
        losses.append(part_losses)
        for name, rows in part.items():
            named[name][first - start : last - start] = rows
    return named, torch.cat(losses)


def measure(
    problem: Problem, engine: str, sizes: Plan, precision: str = "float32", combines: bool = True
) -> Measured:
    """Compute each layer's Gramian, from all rows or from pairs of row blocks.

    Args:
        problem: The measurement.
        engine: "loop", "vmap" or "ghost".
        sizes: How many rows may be held; of blocks, two are held at a time.
        precision: Of the ghost engine's products; the others multiply in float64.
        combines: Whether `combine` will be called.

    Returns:
        Gramians, losses, and how to combine the rows.
    """
    if engine == "ghost":
        products = Products.within(precision, sizes.spare)
        found = ghost_in_blocks(problem, products, sizes.chunk, combines)
        return Measured(found.layers, found.losses, found.combine, found.notes)
    k, block = problem.k, sizes.block
    if block >= k:
        rows, losses = compute_rows(problem, engine, sizes.chunk, 0, k)
        layers = {name: geometry.gramian(flat_rows(row)) for name, row in rows.items()}
        return Measured(layers, losses, GradientRows(rows).combine)
    layers = {
        name: torch.empty(k, k, dtype=torch.float64, device=p.device)
        for name, p in problem.parameters.items()
    }
    all_losses = []
    for a in range(0, k, block):
        a_end = min(a + block, k)
        rows, losses = compute_rows(problem, engine, sizes.chunk, a, a_end)
        all_losses.append(losses)
        for name, row in rows.items():
            layers[name][a:a_end, a:a_end] = geometry.gramian(flat_rows(row))
        for b in range(a_end, k, block):
            b_end = min(b + block, k)
            others, _ = compute_rows(problem, engine, sizes.chunk, b, b_end)
            for name, row in rows.items():
                cross = geometry.cross_gramian(flat_rows(row), flat_rows(others[name]))
                layers[name][a:a_end, b:b_end] = cross
                layers[name][b:b_end, a:a_end] = cross.T
    layers = {name: geometry.blank_rows(matrix) for name, matrix in layers.items()}
    combine = partial(_combine_again, problem, engine, sizes.chunk)
    return Measured(layers, torch.cat(all_losses), combine)


def _combine_again(problem: Problem, engine: str, chunk: int, weights: Tensor) -> Rows:
    """Compute the weighted rows once more, and add them up chunk by chunk."""
    wide = {
        name: torch.zeros_like(p.detach(), dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in problem.parameters.items()
    }
    # In the chunks of the first pass, since vmap draws the dropout masks of a chunk together.
    for start in range(0, problem.k, chunk):
        stop = min(start + chunk, problem.k)
        if weights[start:stop].any():
            rows, _ = compute_rows(problem, engine, chunk, start, stop)
            for name, part in GradientRows(rows).combine(weights[start:stop]).items():
                wide[name] += part
    return {name: wide[name].to(p.dtype) for name, p in problem.parameters.items()}
