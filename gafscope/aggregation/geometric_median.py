"""The geometric median of the micro-gradients, by smoothed Weiszfeld iterations in their span.

K. Pillutla, S. M. Kakade, Z. Harchaoui, "Robust Aggregation for Federated Learning"
(arXiv 1912.13445), Algorithm 2, run until it no longer moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.selection import finite_products, typical_norm, weighted
from gafscope.errors import UserError
from gafscope.geometry import centred_gramian
from gafscope.gradients import Gramian

_ITERATIONS = 200
_STILL = 1e-9


@final
@dataclass(frozen=True)
class GeometricMedian:
    """Combine the micro-gradients to the point whose distances to them add up to the least.

    The minimum of `sum_i |v - g_i|` over v is a weighted mean of the rows with
    `w_i ~ 1 / |v - g_i|`, found by repeating `w_i ~ 1 / max(nu, |v - g_i|)`, `v = sum_i w_i g_i`
    from the plain mean on, with nu = smoothing times the median norm. Fewer than half of the
    rows, however large, cannot carry it away. It accepts every finite row (a zero row is a point
    like any other) and skips only when there is none.

    Args:
        smoothing: Distances below this share of the median norm count as equal, in (0, 1].

    Raises:
        UserError: If the smoothing is out of range, or (when called) there is only one
            micro-gradient.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [90.0]], dtype=torch.float64)
        >>> decision = GeometricMedian()(Gramian(rows @ rows.T))
        >>> (decision.weights @ rows).round(decimals=3)
        tensor([2.], dtype=torch.float64)
    """

    smoothing: float = 1e-6

    def __post_init__(self):
        if not 0 < self.smoothing <= 1:
            raise UserError(
                "smoothing is a share of the median norm and must lie in (0, 1], but is "
                f"{self.smoothing}."
            )

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision; its distances are those to the median, `|v - g_i|`, in units of the
            median norm.
        """
        products, finite = finite_products(gramian, "GeometricMedian", 2)
        scale = typical_norm(products)
        weights = torch.zeros(gramian.k, dtype=torch.float64)
        distances = torch.full_like(weights, torch.nan)
        if bool(finite.any()):
            kept = centred_gramian(products[finite][:, finite])
            weights[finite] = found = _weiszfeld(kept, self.smoothing * scale)
            distances[finite] = _distances(kept, found) / scale
        return weighted(weights, distances, finite)


def _weiszfeld(centred_cc: Tensor, nu: float) -> Float64[Tensor, " c"]:
    weights = torch.full((len(centred_cc),), 1 / len(centred_cc), dtype=torch.float64)
    for _ in range(_ITERATIONS):
        inverse = 1 / _distances(centred_cc, weights).clamp(min=nu)
        moved = inverse / inverse.sum()
        still = bool((moved - weights).abs().max() <= _STILL)
        weights = moved
        if still:
            break
    return weights


def _distances(centred_cc: Tensor, weights: Tensor) -> Tensor:
    """Distances of all rows to `sum_i w_i g_i`."""
    dots = centred_cc @ weights
    return (weights @ dots - 2 * dots + centred_cc.diagonal()).clamp(min=0.0).sqrt()
