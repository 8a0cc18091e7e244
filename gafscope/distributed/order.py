"""The order in which rows are visited: that of the ranks, or changed by a seed all ranks share."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from gafscope.aggregation import Decision
from gafscope.errors import unknown_name
from gafscope.gradients import Gramian

Order = Literal["rank", "rotate", "shuffle"]
"""By rank; by rank, but starting one later at each step; drawn anew at each step."""


def check_order(order: str) -> None:
    """Refuse an order that there is not.

    Args:
        order: Its name.

    Raises:
        UserError: If it is none of `Order`.
    """
    if order not in get_args(Order):
        raise unknown_name("visiting order", order, get_args(Order))


def visiting_order(order: Order, k: int, seed: int, step: int) -> list[int]:
    """Give the order in which the k rows of a step are visited, the same on every rank.

    Args:
        order: The kind of order.
        k: Number of rows.
        seed: Seed of "shuffle" and start of "rotate".
        step: The step's number.

    Returns:
        Each index once.

    Example:
        >>> visiting_order("rotate", k=4, seed=0, step=5)
        [1, 2, 3, 0]
    """
    if order == "rank":
        return list(range(k))
    if order == "rotate":
        return [(i + seed + step) % k for i in range(k)]
    # Seeds that differ by a large odd number give unrelated streams for every step.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.randperm(k, generator=generator).tolist()


def reordered(gramian: Gramian, order: list[int]) -> Gramian:
    """Put a Gramian's rows and columns into the order in which they are visited.

    Args:
        gramian: Of rows in the order of the ranks.
        order: Each index once.
    """
    if order == sorted(order):
        return gramian
    index = torch.tensor(order)
    layers = {name: layer[index][:, index] for name, layer in gramian.layers.items()}
    return replace(gramian, matrix=gramian.matrix[index][:, index], layers=layers)


def restored(decision: Decision, order: list[int]) -> Decision:
    """Put a decision on visited rows back into the order of the ranks.

    Args:
        decision: On a Gramian that `reordered` gave.
        order: The same order.
    """
    return Decision(
        weights=rank_order(decision.weights, order),
        accepted=rank_order(decision.accepted, order),
        step=decision.step,
        distances=rank_order(decision.distances, order),
        finite=rank_order(decision.finite, order),
    )


def rank_order(visited_k: Tensor, order: list[int]) -> Tensor:
    """Put one number a visited row back into the order of the ranks.

    Args:
        visited_k: (k,), in the order of the visits.
        order: That order.
    """
    rows = torch.empty_like(visited_k)
    rows[torch.tensor(order)] = visited_k
    return rows
