"""How well a score tells flipped labels from true ones: AUROC, with intervals.

Shape legend: n samples, m of them flipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gafscope.errors import UserError
from gafscope.metrics import Estimate

# The .975 quantile of the normal distribution.
_QUANTILE = 1.959964
_ONE_KIND = "needs at least 2 samples of both kinds"


def auroc(scores: ArrayLike, positive: ArrayLike) -> Estimate:
    """Give the probability that a random positive sample scores above a random negative one.

    `AUROC = P(score+ > score-) + P(score+ = score-) / 2`, with DeLong's variance (DeLong, DeLong
    and Clarke-Pearson 1988, Biometrics 44); the 95% interval is the normal one on the logit scale,
    which stays inside [0, 1]. It holds for other samples of this law at the same model.

    Args:
        scores: (n,), higher for what is more likely to be positive; NaN are left out.
        positive: (n,) bool.

    Returns:
        A number in [0, 1]: 1 separates perfectly, 0.5 is chance. No interval where it is exactly 0
        or 1. NaN where one of the two kinds is missing.

    Raises:
        UserError: If there is not one score a sample.

    Example:
        >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]).value
        0.75
    """
    placed = _place(scores, positive)
    if placed is None:
        return Estimate(math.nan, math.nan, math.nan, 0, _ONE_KIND)
    value, n = placed.value, placed.n
    if not 0 < value < 1:
        return Estimate(value, math.nan, math.nan, n, "no interval: perfectly separated")
    logit = math.log(value / (1 - value))
    reach = _QUANTILE * placed.error() / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-end)) for end in (logit - reach, logit + reach))
    return Estimate(value, low, high, n)


def auroc_difference(scores: ArrayLike, others: ArrayLike, positive: ArrayLike) -> Estimate:
    """Compare two scores on the same samples, `AUROC(scores) - AUROC(others)`.

    Args:
        scores: (n,), the one score.
        others: (n,), the other. Samples where either is NaN are left out.
        positive: (n,) bool.

    Returns:
        The difference with DeLong's 95% interval, which knows that both saw the same samples.

    Raises:
        UserError: If there is not one score of each kind a sample.
    """
    first, second = np.asarray(scores, float), np.asarray(others, float)
    truth = np.asarray(positive, bool)
    for values in (first, second):
        _check(values, truth)
    known = ~(np.isnan(first) | np.isnan(second))
    one, two = _place(first[known], truth[known]), _place(second[known], truth[known])
    if one is None or two is None:
        return Estimate(math.nan, math.nan, math.nan, int(known.sum()), _ONE_KIND)
    pair = _Placed(one.positive - two.positive, one.negative - two.negative)
    reach = _QUANTILE * pair.error()
    value = one.value - two.value
    return Estimate(value, value - reach, value + reach, one.n)


def separation(scores: Mapping[str, ArrayLike], positive: ArrayLike) -> pd.DataFrame:
    """Compare scores by how well they rank the positive samples first.

    Args:
        scores: Name -> (n,); the last one is what the others are compared with.
        positive: (n,) bool.

    Returns:
        One row a score: `score`, `auroc`, `auroc_low`, `auroc_high`, `samples`, and `over_<last>`
        with its `_low` and `_high`, the difference to the last score.

    Raises:
        UserError: If there is not one score of each kind a sample.
    """
    last = list(scores)[-1]
    rows = []
    for name, values in scores.items():
        found = auroc(values, positive)
        over = auroc_difference(values, scores[last], positive)
        alone = name == last
        rows.append(
            {
                "score": name,
                "auroc": found.value,
                "auroc_low": found.low,
                "auroc_high": found.high,
                "samples": found.n,
                f"over_{last}": math.nan if alone else over.value,
                f"over_{last}_low": math.nan if alone else over.low,
                f"over_{last}_high": math.nan if alone else over.high,
            }
        )
    return pd.DataFrame(rows)


@final
@dataclass(frozen=True)
class _Placed:
    """Where each sample stands among those of the other kind, in [0, 1] (DeLong's components)."""

    positive: np.ndarray
    negative: np.ndarray

    @property
    def value(self) -> float:
        return float(self.positive.mean())

    @property
    def n(self) -> int:
        return len(self.positive) + len(self.negative)

    def error(self) -> float:
        parts = (self.positive, self.negative)
        return math.sqrt(sum(float(np.var(part, ddof=1)) / len(part) for part in parts))


def _place(scores: ArrayLike, positive: ArrayLike) -> _Placed | None:
    from scipy.stats import rankdata

    values, truth = np.asarray(scores, float), np.asarray(positive, bool)
    _check(values, truth)
    known = ~np.isnan(values)
    values, truth = values[known], truth[known]
    m, others = int(truth.sum()), int((~truth).sum())
    if m < 2 or others < 2:
        return None
    ranks = rankdata(values)
    above = (ranks[truth] - rankdata(values[truth])) / others
    below = (ranks[~truth] - rankdata(values[~truth])) / m
    return _Placed(above, 1 - below)


def _check(values: np.ndarray, truth: np.ndarray) -> None:
    if values.shape != truth.shape or values.ndim != 1:
        raise UserError(
            "AUROC takes one score a sample and whether the sample is positive, both of shape "
            f"(n,), but they have the shapes {values.shape} and {truth.shape}."
        )
