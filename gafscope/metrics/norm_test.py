"""The norm test: is the batch large enough for its mean gradient to be trusted?"""

from __future__ import annotations

import math

from gafscope.metrics.estimate import Estimate
from gafscope.metrics.m_coherence import coherence
from gafscope.metrics.signal import estimate_from_signal
from gafscope.metrics.source import Source, finite_gramian


def norm_test(source: Source, *, layer: str | None = None) -> Estimate:
    """Give `(tr(Sigma) / n) / |g|^2`, the variance of the mean gradient g over its square.

    Sigma is the sample covariance of the n rows (divisor n - 1), g their mean. The test of Byrd,
    Chin, Nocedal and Wu (2012, Math. Program. 134, section 3; Bottou, Curtis and Nocedal 2018,
    arXiv 1606.04838, section 5.2) asks that this be at most theta^2 with theta in (0, 1): then -g
    is likely to be a descent direction; where it is larger, they enlarge the batch to
    n * value / theta^2 rows. The interval is that of `m_coherence`, mapped: for rows of this law
    at this n.

    Args:
        source: Gramian or gradients, at least 2 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number of at least 0: 0 when all rows are equal, about 1 when they share no mean,
        infinity when they cancel.

    Raises:
        UserError: If there is no such layer, or there are too few rows.
    """
    matrix, note = finite_gramian(source, layer, "norm_test", 2)
    n = len(matrix)

    def ratio(rho: float) -> float:
        coherent = coherence(rho, n)
        # Equal rows leave a rounding error of either sign.
        return math.inf if coherent == 0 else max((1 - rho) / coherent, 0.0)

    return estimate_from_signal(matrix, note, ratio)
