"""Means over seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided 95% interval.

    Attributes:
        mean: The mean.
        low: Lower end; NaN from a single value.
        high: Upper end; NaN from a single value.
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of 0."""
        return self.low > 0 or self.high < 0

    def percent(self) -> str:
        """Write shares as percentages, e.g. `85.2 [83.0, 87.4]`."""
        if math.isnan(self.low):
            return f"{100 * self.mean:.1f}"
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def mean_interval(values: Sequence[float]) -> Interval:
    """Average values with Student's 95% interval, `mean +- t s / sqrt(n)`.

    For paired comparisons pass the differences, one a seed.

    Args:
        values: One value a seed.

    Returns:
        The mean and its interval; few seeds give honest, wide ones.

    Example:
        >>> mean_interval([0.1, 0.2, 0.3]).percent()
        '20.0 [-4.8, 44.8]'
    """
    from scipy import stats

    numbers = np.asarray(values, dtype=float)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return Interval(mean, math.nan, math.nan)
    margin = stats.t.ppf(0.975, len(numbers) - 1) * numbers.std(ddof=1) / math.sqrt(len(numbers))
    return Interval(mean, mean - float(margin), mean + float(margin))


def over_seeds(
    ends: pd.DataFrame, by: Sequence[str], columns: Sequence[str], means: Sequence[str] = ()
) -> pd.DataFrame:
    """Summarise the ends of runs over their seeds.

    Args:
        ends: One row a run.
        by: Columns that name a condition.
        columns: Columns to average, with intervals.
        means: Columns to average without.

    Returns:
        One row a condition, in the order of appearance: `seeds`, and for each column its mean,
        `<column>_low` and `<column>_high`.
    """
    import pandas as pd

    rows = []
    for key, group in ends.groupby(list(by), sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(by, key, strict=True)) | {"seeds": len(group)}
        for column in columns:
            interval = mean_interval(group[column].tolist())
            row |= {
                column: interval.mean,
                f"{column}_low": interval.low,
                f"{column}_high": interval.high,
            }
        row |= {column: group[column].mean() for column in means}
        rows.append(row)
    return pd.DataFrame(rows)


def paired_difference(ends: pd.DataFrame, column: str, rule: str, other: str) -> Interval:
    """Compare two rules seed by seed.

    Args:
        ends: One row a run, with `rule` and `seed`.
        column: The value to compare.
        rule: The rule whose advantage is wanted.
        other: The rule to compare with.

    Returns:
        Mean and interval of `rule - other` over the seeds that both have.
    """
    wide = ends.pivot_table(index="seed", columns="rule", values=column)
    return mean_interval((wide[rule] - wide[other]).dropna().tolist())
