"""A fixed number of the micro-gradients that agree best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.selection import (
    averaged,
    check_count,
    distances_to_others,
    finite_products,
)
from gafscope.gradients import Gramian


@final
@dataclass(frozen=True)
class TopM:
    """Average the m micro-gradients nearest to the sum of all the others.

    Nearness is the cosine distance of g_i to the sum of the other finite ones; equal ones are
    taken by index. Where fewer than m are finite all of these are taken. It skips only when one
    or none is finite: without a threshold it steps on the best of gradients that all disagree.

    Args:
        m: How many to accept, at least 1.

    Raises:
        UserError: If m is below 1, or (when called) there are fewer than m micro-gradients, or
            only one.

    Example:
        >>> K = torch.tensor([[1.0, 0.9, -0.5], [0.9, 1.0, -0.5], [-0.5, -0.5, 1.0]])
        >>> TopM(m=2)(Gramian(K.double()))
        Decision(step=True, 2 of 3 accepted, weights=[0.5, 0.5, 0])
    """

    m: int

    def __post_init__(self):
        check_count(self.m)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision; its distances are those to the sum of the others.
        """
        products, finite = finite_products(
            gramian, f"TopM(m={self.m})", max(self.m, 2), "a smaller m"
        )
        distances = distances_to_others(products, finite)
        accepted = torch.zeros_like(finite)
        # NaN, which only rows that cannot be accepted have, sorts last.
        accepted[distances.argsort(stable=True)[: self.m]] = True
        return averaged(accepted & distances.isfinite(), distances, finite, least=1)
