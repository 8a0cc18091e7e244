"""Krum and multi-Krum: rows whose nearest neighbours are near, for a few that may be anything.

P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries:
Byzantine Tolerant Gradient Descent" (arXiv 1703.02757).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.selection import averaged, check_count, finite_products, typical_norm
from gafscope.errors import UserError
from gafscope.gradients import Gramian


@final
@dataclass(frozen=True)
class Krum:
    """Take the one micro-gradient whose k - f - 2 nearest neighbours are nearest.

    The score of g_i is the sum of `|g_i - g_j|^2` over its k - f - 2 nearest others; the lowest
    score wins, the lowest index among equal ones. Up to f of the k rows may be arbitrary. A row
    that is not finite counts as one of the f and is at infinite distance; with more than f of
    them the step is skipped. A zero row is a point like any other.

    Args:
        byzantine: f, how many rows may be arbitrary, at least 0.

    Raises:
        UserError: If f is negative, or (when called) k < 2 f + 3.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [2.0], [4.0], [90.0]])
        >>> Krum(byzantine=1)(Gramian(rows @ rows.T))
        Decision(step=True, 1 of 5 accepted, weights=[0, 1, 0, 0, 0])
    """

    byzantine: int = 1

    def __post_init__(self):
        _check_byzantine(self.byzantine)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision; its distances are the root mean square distances to the k - f - 2
            nearest others, in units of the median norm.
        """
        return _select(gramian, f"Krum(byzantine={self.byzantine})", self.byzantine, 1)


@final
@dataclass(frozen=True)
class MultiKrum:
    """Average the m micro-gradients with the lowest scores of `Krum`.

    m = 1 is Krum, m = k averages everything.

    Args:
        byzantine: f, how many rows may be arbitrary, at least 0.
        m: How many to average, at least 1; of fewer finite rows all are taken.

    Raises:
        UserError: If an argument is out of range, or (when called) k < 2 f + 3 or k < m.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [2.0], [4.0], [90.0]])
        >>> MultiKrum(byzantine=1, m=2)(Gramian(rows @ rows.T))
        Decision(step=True, 2 of 5 accepted, weights=[0.5, 0.5, 0, 0, 0])
    """

    byzantine: int = 1
    m: int = 2

    def __post_init__(self):
        _check_byzantine(self.byzantine)
        check_count(self.m)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision, with distances as in `Krum`.
        """
        name = f"MultiKrum(byzantine={self.byzantine}, m={self.m})"
        return _select(gramian, name, self.byzantine, self.m)


def _select(gramian: Gramian, rule: str, byzantine: int, m: int) -> Decision:
    least = max(2 * byzantine + 3, m)
    products, finite = finite_products(gramian, rule, least, "a smaller byzantine or m")
    neighbours = gramian.k - byzantine - 2
    scores = _scores(products, neighbours)
    scores = torch.where(finite, scores, torch.inf)
    accepted = torch.zeros_like(finite)
    if int((~finite).sum()) <= byzantine:
        accepted[scores.argsort(stable=True)[:m]] = True
    distances = torch.where(
        finite, (scores / neighbours).sqrt() / typical_norm(products), torch.nan
    )
    return averaged(accepted, distances, finite, least=1)


def _scores(products_kk: Tensor, neighbours: int) -> Float64[Tensor, " k"]:
    squares = products_kk.diagonal()
    between = (squares[:, None] + squares[None, :] - 2 * products_kk).clamp(min=0.0)
    between.fill_diagonal_(torch.inf)
    return between.topk(neighbours, largest=False).values.sum(1)


def _check_byzantine(byzantine: int) -> None:
    if byzantine < 0:
        raise UserError(
            f"byzantine, the number of rows that may be arbitrary, must be at least 0, but is "
            f"{byzantine}."
        )
