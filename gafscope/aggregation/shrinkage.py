"""Weights by how noisy each micro-gradient seems to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.selection import distances_to_others, finite_products, weighted
from gafscope.errors import UserError
from gafscope.geometry import centred_gramian
from gafscope.gradients import Gramian


@final
@dataclass(frozen=True)
class InverseVariance:
    """Weigh each micro-gradient by the inverse of its estimated variance, shrunk to the mean one.

    If the rows share one mean and row i has total variance v_i, the weights of least variance are
    `w_i ~ 1 / v_i` (Gauss and Markov). With `e_i = |g_i - mean|^2` over c finite rows,
    `V = sum_i e_i c / (c - 1)` estimates `sum_i v_i`, and `v_i = (e_i - V / c^2) c / (c - 2)` each
    of them without bias (C. R. Rao, 1970, "Estimation of heteroscedastic variances in linear
    models", Journal of the American Statistical Association 65). One row tells little about its
    own variance, so negative estimates count as 0 and each is drawn towards the mean one:
    `(1 - shrinkage) v_i + shrinkage V / c`.

    It accepts every finite row (a zero row is a point like any other) and steps whenever there is
    one; fewer than three weigh the same.

    Args:
        shrinkage: From just above 0 (a row with a variance near 0 takes nearly all) to 1 (plain
            averaging).

    Raises:
        UserError: If the shrinkage is out of range, or (when called) there are fewer than three
            micro-gradients: two are equally far from their mean.

    Example:
        >>> InverseVariance(shrinkage=0.5)(Gramian(torch.diag(torch.tensor([1.0, 1, 1, 4]))))
        Decision(step=True, 4 of 4 accepted, weights=[0.2875, 0.2875, 0.2875, 0.1375])
    """

    shrinkage: float = 0.5

    def __post_init__(self):
        if not 0 < self.shrinkage <= 1:
            raise UserError(
                "shrinkage must lie in (0, 1], from the plain inverse variances to equal weights, "
                f"but is {self.shrinkage}."
            )

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision; its distances are the cosine distances to the sum of the others.
        """
        products, finite = finite_products(gramian, "InverseVariance", 3)
        variances = _row_variances(products[finite][:, finite])
        weights = torch.zeros(gramian.k, dtype=torch.float64)
        mean = variances.mean()
        shrunk = (1 - self.shrinkage) * variances.clamp(min=0.0) + self.shrinkage * mean
        weights[finite] = mean / shrunk if bool(mean > 0) else torch.ones_like(variances)
        return weighted(weights, distances_to_others(products, finite), finite)


def _row_variances(products_cc: Float64[Tensor, "c c"]) -> Float64[Tensor, " c"]:
    """Estimate the total variance of each row around the mean that all share.

    Args:
        products_cc: Inner products of finite rows.

    Returns:
        (c,), without bias and so perhaps negative; all 0 for fewer than three rows.
    """
    c = len(products_cc)
    if c < 3:
        return torch.zeros(c, dtype=torch.float64)
    residuals = centred_gramian(products_cc).diagonal()
    total = residuals.sum() * c / (c - 1)
    return (residuals - total / c**2) * c / (c - 2)
