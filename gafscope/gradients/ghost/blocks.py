"""The ghost engine within limited memory: pairs of blocks of rows, one pass a pair."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gafscope.gradients.ghost.engine import Ghost, ghost
from gafscope.gradients.ghost.places import Unsupported
from gafscope.gradients.ghost.products import Products
from gafscope.gradients.problem import Problem


def ghost_in_blocks(problem: Problem, products: Products, capacity: int, combines: bool) -> Ghost:
    """Measure with at most so many rows in one pass.

    Args:
        problem: The measurement.
        products: How to multiply.
        capacity: Rows that fit into memory at once.
        combines: Whether the rows will be added up.

    Returns:
        Gramians, losses, and how to combine the rows.

    Raises:
        Unsupported: If the model cannot be taken exactly, or not in blocks.
        Coupled: If its samples depend on each other.
    """
    k = problem.k
    if capacity >= k:
        return ghost(problem, products, combines)
    if capacity < 2:
        raise Unsupported("the memory does not hold two microbatches at once")
    size = capacity // 2
    blocks = [range(start, min(start + size, k)) for start in range(0, k, size)]
    layers: dict[str, Tensor] = {}
    losses: dict[int, Tensor] = {}
    notes: tuple[str, ...] = ()
    for i, a in enumerate(blocks):
        for b in blocks[i + 1 :]:
            rows = [*a, *b]
            part = _pass(problem, products, rows, combines=False)
            index = torch.tensor(rows, device=part.losses.device)
            for name, matrix in part.layers.items():
                if name not in layers:
                    layers[name] = matrix.new_zeros(k, k)
                own = index.to(matrix.device)
                layers[name][own[:, None], own] = matrix
            losses |= dict(zip(rows, part.losses, strict=True))
            notes = notes or part.notes

    def combine(weights: Tensor) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for block in blocks:
            used = [i for i in block if weights[i] != 0]
            if used:
                part = _pass(problem, products, used, combines=True).combine(weights[used])
                total = {name: total[name] + g for name, g in part.items()} if total else part
        return total or {n: torch.zeros_like(p.detach()) for n, p in problem.parameters.items()}

    together = torch.stack([losses[i] for i in range(k)])
    return Ghost(layers, together, combine, random=False, notes=notes)


def _pass(problem: Problem, products: Products, rows: list[int], combines: bool) -> Ghost:
    batch = pytree.tree_map(lambda leaf: leaf[rows], problem.batch)
    part = ghost(replace(problem, batch=batch, k=len(rows)), products, combines)
    if part.random:
        raise Unsupported("the model draws random numbers, other ones in every block")
    return part
