"""Accept what agrees with the sum of all the others, in no order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.selection import averaged, distances_to_others, finite_products
from gafscope.aggregation.sequential import check_tau
from gafscope.gradients import Gramian


@final
@dataclass(frozen=True)
class LeaveOneOut:
    """Average the micro-gradients within tau of the sum of all the others.

    `g_i` is accepted when `1 - <g_i, t> / (|g_i| |t|) <= tau` with `t = sum of g_j, j != i`, over
    the finite ones. Every row is judged by the same others, accepted or not, so the outcome does
    not depend on the order. The update is skipped when fewer than two are accepted. With k = 2
    this is GAF.

    Args:
        tau: Largest accepted cosine distance, in [0, 2].

    Raises:
        UserError: If tau is out of range, or (when called) there is only one micro-gradient.

    Example:
        >>> import torch
        >>> K = torch.tensor([[1.0, 0.9, -0.5], [0.9, 1.0, -0.5], [-0.5, -0.5, 1.0]])
        >>> LeaveOneOut(tau=0.97)(Gramian(K.double()))
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
            The decision; its distances are those to the sum of the others.
        """
        products, finite = finite_products(gramian, "LeaveOneOut", 2)
        distances = distances_to_others(products, finite)
        return averaged(distances <= self.tau, distances, finite)
