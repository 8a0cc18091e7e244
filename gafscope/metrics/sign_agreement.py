"""On how many coordinates the rows agree about the sign.

Both shares depend on n by their nature (the more rows, the fewer agree), so neither carries an
interval; compare them at equal n, or with what unrelated rows without zeros would give.
"""

from __future__ import annotations

from collections.abc import Callable

from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import without_interval
from gafscope.metrics.source import Source, finite_gradients


def unanimous_sign(source: Source, *, layer: str | None = None) -> Estimate:
    """Give the share of coordinates on which all rows have one sign.

    The AND-mask's share of kept coordinates at threshold 1 (Parascandolo et al. 2020,
    arXiv 2009.00329). Unrelated rows give `2^(1 - n)`.

    Args:
        source: Gradients, at least 2 finite rows.
        layer: A parameter's name, or None for all of them together.

    Returns:
        A number in [0, 1]. A zero has no sign, so it breaks unanimity.

    Raises:
        UserError: If the source is a Gramian, there is no such layer, or there are too few rows.
    """
    return _share_of_coordinates(source, layer, "unanimous_sign", lambda n: n)


def majority_sign(source: Source, *, layer: str | None = None) -> Estimate:
    """Give the share of coordinates on which more than half of the rows have one sign.

    The coordinates on which the majority vote of signSGD is carried by a true majority (Bernstein
    et al. 2018, arXiv 1810.05291). With an odd number of rows only zeros can prevent one;
    unrelated rows of even n give `1 - C(n, n / 2) / 2^n`.

    Args:
        source: Gradients, at least 2 finite rows.
        layer: A parameter's name, or None for all of them together.

    Returns:
        A number in [0, 1].

    Raises:
        UserError: If the source is a Gramian, there is no such layer, or there are too few rows.
    """
    return _share_of_coordinates(source, layer, "majority_sign", lambda n: n // 2 + 1)


def _share_of_coordinates(
    source: Source, layer: str | None, metric: str, votes_needed: Callable[[int], int]
) -> Estimate:
    named, note = finite_gradients(source, layer, metric, 2)
    n = len(next(iter(named.values())))
    agreed = total = 0
    for rows in named.values():
        positive, negative = (rows > 0).sum(0), (rows < 0).sum(0)
        agreed += int((positive.maximum(negative) >= votes_needed(n)).sum())
        total += rows.shape[1]
    return without_interval(agreed / total, n, note)
