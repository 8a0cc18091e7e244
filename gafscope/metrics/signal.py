"""How much of the gradients is signal: the ratio behind noise scale, diversity and coherence."""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Float64
from torch import Tensor

from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import (
    Resampled,
    estimate,
    join_notes,
    mean_of_pairs,
    mean_of_rows,
)


def signal_share(matrix_nn: Float64[Tensor, "n n"]) -> Resampled:
    """Estimate `rho = |mu|^2 / E|g|^2`, the squared mean gradient's share of the squared gradient.

    The mean off-diagonal entry of the Gramian is unbiased for |mu|^2, the mean diagonal entry for
    `E|g|^2 = |mu|^2 + tr(Sigma)`, with Sigma the covariance of the rows.

    Args:
        matrix_nn: Gramian of finite rows.

    Returns:
        rho, by chance below 0; NaN when all rows are zero.
    """
    return mean_of_pairs(matrix_nn).over(mean_of_rows(matrix_nn.diagonal()))


def estimate_from_signal(
    matrix_nn: Float64[Tensor, "n n"], note: str, function: Callable[[float], float]
) -> Estimate:
    """Estimate a monotone function of rho; the interval's ends are those of rho, mapped.

    Args:
        matrix_nn: Gramian of finite rows.
        note: What to tell the reader.
        function: rho -> the metric.

    Returns:
        The estimate.
    """
    share = estimate(signal_share(matrix_nn), note, bounds=(-math.inf, 1.0))
    ends = function(share.low), function(share.high)
    value, low, high = function(share.value), min(ends), max(ends)
    zero = "all gradients are zero" if math.isnan(share.value) else ""
    return Estimate(value, low, high, share.n, join_notes(share.note, zero))
