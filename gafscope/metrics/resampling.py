"""95% intervals by the delete-one jackknife over rows.

Rows are what was drawn independently, so rows are what is deleted; the k (k - 1) / 2 pairs share
rows and tell far less than their number suggests. Deleting row i takes row and column i out of the
Gramian. No bootstrap: a row drawn twice would make a pair with itself, at distance 0.

The jackknife's variance errs on the safe side (Efron and Stein 1981, Ann. Statist. 9(3)). For
means over pairs the excess is small where the rows share a mean, and reaches a factor of 2 where
they share none: intervals then cover 98-99%, not 95%.

Shape legend: n rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.metrics.estimate import Estimate

_LEAST_ROWS = 3


@final
@dataclass(frozen=True, eq=False)
class Resampled:
    """A statistic of n rows, and the same statistic with each row deleted in turn.

    Attributes:
        value: ().
        without: (n,).
    """

    value: Float64[Tensor, ""]
    without: Float64[Tensor, " n"]

    def over(self, other: Resampled) -> Resampled:
        """Divide by another statistic of the same rows.

        Args:
            other: The denominator.

        Returns:
            The ratio.
        """
        return Resampled(self.value / other.value, self.without / other.without)


@final
@dataclass(frozen=True)
class Scale:
    """A monotone transform on which an estimate's errors are closer to symmetric.

    Attributes:
        forward: Value -> transformed value.
        backward: Its inverse, on the whole real line.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[float], float]


IDENTITY = Scale(lambda values: values, lambda end: end)
LOG = Scale(torch.log, lambda end: math.exp(end) if end < 700 else math.inf)
RECIPROCAL = Scale(torch.reciprocal, lambda end: 1 / end if end > 0 else math.inf)


def mean_of_rows(values_n: Float64[Tensor, " n"]) -> Resampled:
    """Average one number a row.

    Args:
        values_n: (n,).

    Returns:
        The mean, and the means without each row.
    """
    n, total = len(values_n), values_n.sum()
    return Resampled(total / n, (total - values_n) / (n - 1))


def mean_of_pairs(values_nn: Float64[Tensor, "n n"]) -> Resampled:
    """Average one number a pair, over all pairs of different rows.

    Args:
        values_nn: (n, n), symmetric; its diagonal is not looked at.

    Returns:
        The mean, and the means without each row.

    Example:
        >>> mean_of_pairs(torch.tensor([[0.0, 1, 2], [1, 0, 6], [2, 6, 0]]).double()).without
        tensor([6., 2., 1.], dtype=torch.float64)
    """
    n = len(values_nn)
    by_row = values_nn.sum(1) - values_nn.diagonal()
    total = by_row.sum()
    return Resampled(total / (n * (n - 1)), (total - 2 * by_row) / ((n - 1) * (n - 2)))


def interval(statistic: Resampled, scale: Scale = IDENTITY) -> tuple[float, float]:
    """Give the 95% interval `f^-1(f(t) -+ q s)`.

    `s^2 = (n - 1) / n sum_i (f(t_i) - mean f(t_i))^2` with t_i the statistic without row i, and q
    the .975 quantile of Student's distribution with n - 1 degrees of freedom (Tukey 1958).

    Args:
        statistic: t and t_i.
        scale: f.

    Returns:
        (low, high); NaN with fewer than 3 rows, or where a t_i is not finite on the scale.
    """
    n = len(statistic.without)
    value, without = scale.forward(statistic.value), scale.forward(statistic.without)
    if n < _LEAST_ROWS or not (value.isfinite() and without.isfinite().all()):
        return math.nan, math.nan
    variance = (n - 1) / n * (without - without.mean()).square().sum()
    reach = _student_quantile(n - 1) * math.sqrt(float(variance))
    ends = scale.backward(float(value) - reach), scale.backward(float(value) + reach)
    return min(ends), max(ends)


def estimate(
    statistic: Resampled,
    note: str,
    scale: Scale = IDENTITY,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Put a statistic and its interval together.

    Args:
        statistic: One number and its values without each row.
        note: What to tell the reader.
        scale: Where its errors are symmetric.
        bounds: The interval never leaves them.

    Returns:
        The estimate.
    """
    low, high = (_within(end, bounds) for end in interval(statistic, scale))
    n = len(statistic.without)
    if n < _LEAST_ROWS:
        note = join_notes(note, f"an interval needs at least {_LEAST_ROWS} rows")
    return Estimate(float(statistic.value), low, high, n, note)


def without_interval(value: float, n: int, note: str) -> Estimate:
    """Put an estimate together that carries no interval.

    Args:
        value: The number.
        n: Rows used.
        note: What to tell the reader.

    Returns:
        The estimate.
    """
    return Estimate(value, math.nan, math.nan, n, note)


def join_notes(*notes: str) -> str:
    """Join the notes that say something.

    Args:
        *notes: Any number of notes, some of them empty.

    Returns:
        One note.
    """
    return "; ".join(note for note in notes if note)


def _within(end: float, bounds: tuple[float, float]) -> float:
    return end if math.isnan(end) else min(max(end, bounds[0]), bounds[1])


@functools.cache
def _student_quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))
