"""Plain averaging, what data-parallel training does; the baseline of everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.sequential import Fold, decide
from gafscope.gradients import Gramian


@final
@dataclass(frozen=True)
class Mean:
    """Average all finite micro-gradients, `sum_i g_i / c`.

    It steps whenever one is finite. The distances to the running sum are recorded as GAF
    would see them.

    Example:
        >>> import torch
        >>> Mean()(Gramian(torch.eye(4).double()))
        Decision(step=True, 4 of 4 accepted, weights=[0.25, 0.25, 0.25, 0.25])
    """

    @property
    def fold(self) -> Fold:
        """Accept every finite gradient."""
        return Fold(tau=2.0, keep=1.0, add=1.0, divide=True, minimum=1)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Average k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision.
        """
        return decide(self.fold, gramian, "Mean")
