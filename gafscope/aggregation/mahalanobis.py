"""Accept what lies close to the mean of the others, by the spread of the rows themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.l2 import check_threshold
from gafscope.aggregation.selection import averaged, finite_products
from gafscope.geometry import check_shrinkage, mahalanobis_squares, span_dimension
from gafscope.gradients import Gramian


@final
@dataclass(frozen=True)
class MahalanobisThreshold:
    """Average the micro-gradients that are near the mean of the others for the rows' covariance.

    `g_i` is accepted when `v_i^T C^-1 v_i / r <= threshold`, `v_i = g_i - mean of the others` and
    C the shrunk covariance of all finite rows in the r dimensions that they span
    (`gafscope.geometry.mahalanobis` has the formula). For rows of one distribution this is about 1,
    whatever their number and unit. A deviation along directions in which all rows differ counts
    less than one of the same length elsewhere; `shrinkage=1` counts all directions alike. A zero
    row is a point like any other. It skips when fewer than two are accepted.

    Args:
        threshold: Largest accepted squared distance a dimension, positive.
        shrinkage: rho in [0, 1], or "ledoit-wolf" to estimate it.

    Raises:
        UserError: If an argument is out of range, or (when called) there are fewer than three
            micro-gradients (two are equally far from each other) or the covariance is singular.

    Example:
        >>> import torch
        >>> K = torch.diag(torch.tensor([1.0, 1, 1, 1, 99])).double()
        >>> MahalanobisThreshold(threshold=2.0)(Gramian(K))
        Decision(step=True, 4 of 5 accepted, weights=[0.25, 0.25, 0.25, 0.25, 0])
    """

    threshold: float
    shrinkage: float | str = "ledoit-wolf"

    def __post_init__(self):
        check_threshold(self.threshold, "1 is the mean over rows of one distribution")
        check_shrinkage(self.shrinkage)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision; its distances are the squared ones a dimension.
        """
        _, finite = finite_products(gramian, "MahalanobisThreshold", 3)
        matrix = gramian.matrix.cpu()
        distances = mahalanobis_squares(matrix, self.shrinkage) / max(span_dimension(matrix), 1)
        return averaged(distances <= self.threshold, distances, finite)
