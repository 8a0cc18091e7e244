"""Accept what lies close to the mean of the others, in length as well as in direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.selection import averaged, deviations, finite_products, typical_norm
from gafscope.errors import UserError
from gafscope.gradients import Gramian


@final
@dataclass(frozen=True)
class L2Threshold:
    """Average the micro-gradients that are near the mean of the others.

    `g_i` is accepted when `|g_i - mean of g_j, j != i| <= threshold * median of |g_j|`, over the
    finite rows (the median over those that are not zero). Identical rows are at 0; rows of one
    length that are all orthogonal to each other are at sqrt(k / (k - 1)), a little above 1; a row
    much longer than the others is at about its length in units of the typical one. A zero row is
    a point like any other. Scaling all rows changes nothing. It skips when fewer than two are
    accepted.

    Args:
        threshold: Largest accepted distance in units of the median norm, positive.

    Raises:
        UserError: If the threshold is not positive, or (when called) there is only one
            micro-gradient.

    Example:
        >>> import torch
        >>> L2Threshold(threshold=2.0)(Gramian(torch.diag(torch.tensor([1.0, 1, 1, 9])).double()))
        Decision(step=True, 3 of 4 accepted, weights=[0.3333, 0.3333, 0.3333, 0])
    """

    threshold: float

    def __post_init__(self):
        check_threshold(self.threshold, "1.2 accepts unrelated rows of one length")

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision; its distances are in units of the median norm.
        """
        products, finite = finite_products(gramian, "L2Threshold", 2)
        distances = deviations(products, finite) / typical_norm(products)
        return averaged(distances <= self.threshold, distances, finite)


def check_threshold(threshold: float, hint: str) -> None:
    """Refuse a threshold that accepts nothing or is no number.

    Args:
        threshold: The threshold.
        hint: What a usual value does, for the message.

    Raises:
        UserError: If it is not positive and finite.
    """
    if not 0 < threshold < math.inf:
        raise UserError(f"threshold must be positive and finite, but is {threshold}; {hint}.")
