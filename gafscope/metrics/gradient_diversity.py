"""Gradient diversity, the inverse of m-coherence."""

from __future__ import annotations

import math

from gafscope.metrics.estimate import Estimate
from gafscope.metrics.m_coherence import coherence
from gafscope.metrics.signal import estimate_from_signal
from gafscope.metrics.source import Source, finite_gramian


def gradient_diversity(source: Source, *, layer: str | None = None) -> Estimate:
    """Give `sum_i |g_i|^2 / |sum_i g_i|^2` (Yin et al. 2017, arXiv 1706.05699).

    Times n it bounds the batch size up to which averaging costs no progress a sample. The interval
    is that of `m_coherence`, inverted: for rows of this law at this n.

    Args:
        source: Gramian or gradients, at least 2 finite rows.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number of at least 1 / n: 1 / n when all rows are equal, 1 when they are orthogonal,
        infinity when they cancel (also as the interval's upper end, where that may be so).

    Raises:
        UserError: If there is no such layer, or there are too few rows.
    """
    matrix, note = finite_gramian(source, layer, "gradient_diversity", 2)
    n = len(matrix)

    def diversity(rho: float) -> float:
        coherent = coherence(rho, n)
        return math.inf if coherent == 0 else 1 / coherent

    return estimate_from_signal(matrix, note, diversity)
