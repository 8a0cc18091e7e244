"""The largest set of micro-gradients that all agree with each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.max_clique import largest_clique, peeled_clique
from gafscope.aggregation.selection import averaged, finite_products
from gafscope.aggregation.sequential import check_tau
from gafscope.geometry import cosine_distance
from gafscope.gradients import Gramian

_EXACT = 32


@final
@dataclass(frozen=True)
class CliqueGAF:
    """Average the largest set of micro-gradients in which every pair is within tau.

    A pair agrees when `1 - <g_i, g_j> / (|g_i| |g_j|) <= tau`. Of several largest sets the one
    with the smallest mean pairwise distance is taken, then the one of the lowest indices. The
    outcome does not depend on the order of the rows nor on their lengths. It skips when no two
    agree. With k = 2 this is GAF.

    The set is exact for up to 32 finite rows. Above, it is found by smallest-degree-last peeling
    (`gafscope.aggregation.max_clique.peeled_clique`): no further row fits in, but a larger set
    may exist.

    Args:
        tau: Largest accepted cosine distance of a pair, in [0, 2].

    Raises:
        UserError: If tau is out of range, or (when called) there is only one micro-gradient.

    Example:
        >>> K = torch.tensor([[1.0, 0.9, -0.9], [0.9, 1.0, -0.9], [-0.9, -0.9, 1.0]])
        >>> CliqueGAF(tau=0.97)(Gramian(K.double()))
        Decision(step=True, 2 of 3 accepted, weights=[0.5, 0.5, 0])
    """

    tau: float = 0.97

    def __post_init__(self):
        check_tau(self.tau)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision; its distances are the mean ones to the (other) rows of the set, or to all
            others when no two agree.
        """
        products, finite = finite_products(gramian, "CliqueGAF", 2)
        distances = torch.full((gramian.k,), torch.nan, dtype=torch.float64)
        accepted = torch.zeros_like(finite)
        rows = finite.nonzero().flatten()
        if len(rows) > 1:
            between = cosine_distance(products[finite][:, finite])
            between.fill_diagonal_(0.0)
            members = self._largest(between)
            accepted[rows[members]] = True
            if len(members) == 1:
                members = list(range(len(rows)))
            others = torch.full((len(rows),), float(len(members)), dtype=torch.float64)
            others[members] -= 1
            distances[finite] = between[members].sum(0) / others
        return averaged(accepted, distances, finite)

    def _largest(self, between_cc: torch.Tensor) -> list[int]:
        agree = between_cc <= self.tau
        if len(agree) > _EXACT:
            return peeled_clique(agree, between_cc)
        adjacent = [
            sum(1 << j for j, yes in enumerate(row) if yes and j != i)
            for i, row in enumerate(agree.tolist())
        ]
        return largest_clique(adjacent, between_cc.tolist())
