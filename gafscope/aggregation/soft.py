"""A threshold without an edge: weights that fall smoothly as the distance grows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.selection import distances_to_others, finite_products, weighted
from gafscope.aggregation.sequential import check_tau
from gafscope.errors import UserError
from gafscope.gradients import Gramian


@final
@dataclass(frozen=True)
class SoftGAF:
    """Weigh each micro-gradient by how well it agrees with the sum of all the others.

    `w_i = s_i / sum_j s_j`, `s_i = 1 / (1 + exp((d_i - tau) / temperature))`, with d_i the cosine
    distance of g_i to the sum of the other finite ones. As the temperature goes to 0 this becomes
    `LeaveOneOut`, and it steps exactly when that does: when at least two rows are within tau.

    The weights always add up to 1: disagreement changes what is averaged and whether to step, not
    the scale of the average. (Weights that shrink the step as well would be a smaller learning
    rate in disguise.)

    Args:
        tau: The cosine distance at which a weight is half of the largest possible, in [0, 2].
        temperature: Width of the transition in cosine distance, above 0.

    Raises:
        UserError: If an argument is out of range, or (when called) there is only one
            micro-gradient.

    Example:
        >>> K = torch.tensor([[1.0, 0.9, -0.5], [0.9, 1.0, -0.5], [-0.5, -0.5, 1.0]])
        >>> SoftGAF(tau=0.97, temperature=0.5)(Gramian(K.double()))
        Decision(step=True, 3 of 3 accepted, weights=[0.4214, 0.4214, 0.1571])
    """

    tau: float = 0.97
    temperature: float = 0.05

    def __post_init__(self):
        check_tau(self.tau)
        if not 0 < self.temperature < math.inf:
            raise UserError(
                "temperature is a width in cosine distance and must be positive, but is "
                f"{self.temperature}; for a hard threshold use LeaveOneOut."
            )

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision; its distances are those to the sum of the others. A row is accepted
            when its weight is not 0, so only `weights` tell how much of it is used.
        """
        products, finite = finite_products(gramian, "SoftGAF", 2)
        distances = distances_to_others(products, finite)
        if int((distances <= self.tau).sum()) < 2:
            return weighted(torch.zeros_like(distances), distances, finite)
        # In logarithms, since both sigmoids and their sum may be too small for a float.
        logits = F.logsigmoid((self.tau - distances) / self.temperature)
        weights = torch.softmax(torch.where(finite, logits, -math.inf), 0)
        return weighted(weights, distances, finite)
