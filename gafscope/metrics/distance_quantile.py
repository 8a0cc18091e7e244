"""Quantiles of the pairwise cosine distance."""

from __future__ import annotations

import numpy as np
import torch

from gafscope import geometry
from gafscope.errors import UserError
from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import without_interval
from gafscope.metrics.source import Source, finite_gramian


def distance_quantile(source: Source, q: float, *, layer: str | None = None) -> Estimate:
    """Give the q-quantile of the cosine distance over all pairs of rows.

    A share q of the pairs is nearer; between two pairs it is interpolated linearly (Hyndman and Fan
    1996, Am. Stat. 50(4), definition 7). A quantile is not smooth in the rows, so it carries no
    interval.

    Args:
        source: Gramian or gradients, at least 2 finite rows.
        q: In [0, 1]; 0.5 is the median.
        layer: A parameter's name, or None for the whole model.

    Returns:
        A number in [0, 2].

    Raises:
        UserError: If q is out of range, there is no such layer, or there are too few rows.
    """
    if not 0 <= q <= 1:
        raise UserError(f"q must lie in [0, 1] (0.5 is the median), but it is {q}.")
    matrix, note = finite_gramian(source, layer, "distance_quantile", 2)
    n = len(matrix)
    rows, columns = torch.triu_indices(n, n, offset=1)
    pairs = geometry.cosine_distance(matrix)[rows, columns]
    # NumPy's, since torch's refuses more than 16 million numbers.
    return without_interval(float(np.quantile(pairs.numpy(), q)), n, note)
