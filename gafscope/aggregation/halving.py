"""The rule of the code released with the paper (gradient_agreement_filtering 0.1.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.sequential import Fold, check_tau, decide
from gafscope.gradients import Gramian


@final
@dataclass(frozen=True)
class HalvingGAF:
    """As GAF, but each accepted gradient is averaged with the running vector: s = (s + g) / 2.

    Later gradients weigh more: four accepted ones weigh 1/8, 1/8, 1/4 and 1/2. Unlike the
    released code, gradients that are not finite are never accepted.

    Args:
        tau: Largest accepted cosine distance, in [0, 2].

    Raises:
        UserError: If tau is out of range, or (when called) there is only one micro-gradient.

    Example:
        >>> import torch
        >>> HalvingGAF(tau=1.0)(Gramian(torch.ones(4, 4).double()))
        Decision(step=True, 4 of 4 accepted, weights=[0.125, 0.125, 0.25, 0.5])
    """

    tau: float = 0.97

    def __post_init__(self):
        check_tau(self.tau)

    @property
    def fold(self) -> Fold:
        """Halve at each acceptance."""
        return Fold(tau=self.tau, keep=0.5, add=0.5, divide=False, minimum=2)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients in their order.

        Args:
            gramian: Their inner products.

        Returns:
            The decision, with the distance to the running vector at each visit.
        """
        return decide(self.fold, gramian, "HalvingGAF")
