"""How the conditions of a study compare: over the seeds, and with averaging and the controls."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gafscope.analyses.conditions import (
    AVERAGING,
    RANDOM_SKIP,
    SAME_UPDATES,
    YOKED,
    control_name,
)
from gafscope.sweep.intervals import mean_interval

if TYPE_CHECKING:
    import pandas as pd

SHOWN = (
    "rule",
    "test_accuracy",
    "best_test_accuracy",
    "train_accuracy",
    "over_averaging",
    "over_yoked",
    "best_over_yoked",
    "accepted",
    "updates",
)
"""What is printed of the table of a comparison."""
ACCURACIES = ("test_accuracy", "best_test_accuracy", "train_accuracy")
_END = re.compile("_(low|high)$")
_MEANS = ("accepted", "updates", "distance")
_OVER = {
    AVERAGING: "over_averaging",
    YOKED: "over_yoked",
    SAME_UPDATES: "over_same_updates",
    RANDOM_SKIP: "over_random_skip",
}


def compare(
    runs: pd.DataFrame, place: str | None = None, means: Sequence[str] = ()
) -> pd.DataFrame:
    """Average over the seeds, and compare each run with averaging and with its controls.

    Args:
        runs: From `measure_conditions`.
        place: The column of the place.
        means: Further columns to average.

    Returns:
        One row a condition or control: `data`, the place, `rule`, `seeds`, accuracies with 95%
        intervals over the seeds; `over_averaging`, `over_yoked`, `over_same_updates` and
        `over_random_skip`, differences of the test accuracy at the end in points, and
        `best_over_averaging` and `best_over_yoked`, those at the best checkpoint by validation,
        paired by seed, with intervals; means of `accepted`, `updates` and `distance`.
    """
    import pandas as pd

    keys = ["data", *([place] if place else []), "rule"]
    rows = []
    for key, group in runs.groupby(keys, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True)) | {"seeds": len(group)}
        for column in ACCURACIES:
            row |= interval_columns(column, group[column].tolist())
        for other, name in _OVER.items():
            row |= _difference(name, runs, row, other, place, "test_accuracy")
        for other in (AVERAGING, YOKED):
            name = f"best_{_OVER[other]}"
            row |= _difference(name, runs, row, other, place, "best_test_accuracy")
        rows.append(row | {column: group[column].mean() for column in (*_MEANS, *means)})
    table = pd.DataFrame(rows)
    # One seed has no intervals, but what it has keeps its columns.
    known = [name for name in table if not table[name].isna().all()]
    return table[[name for name in table if _END.sub("", str(name)) in known]]


def points(row: Mapping[Any, Any], name: str) -> str:
    """Write a difference in points with its interval, e.g. `+2.1 [-0.3, 4.5]`.

    Args:
        row: A row of the table.
        name: The column of the mean.
    """
    # Adding 0 makes a rounded -0.0 a plain 0.
    mean, low, high = (round(row[f"{name}{end}"], 1) + 0.0 for end in ("", "_low", "_high"))
    return f"{mean:+.1f}" + ("" if math.isnan(low) else f" [{low:.1f}, {high:.1f}]")


def interval_columns(name: str, values: Sequence[float]) -> dict[str, float]:
    """Give a mean over seeds and its interval as columns of a table.

    Args:
        name: The column of the mean.
        values: One a seed; none gives NaN.
    """
    nan = math.nan
    if not values:
        return {name: nan, f"{name}_low": nan, f"{name}_high": nan}
    interval = mean_interval(values)
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _difference(
    name: str, runs: pd.DataFrame, row: dict[str, Any], other: str, place: str | None, column: str
) -> dict[str, float]:
    """Compare a condition with averaging or one of its controls, seed by seed, in points."""
    same = runs[runs["data"] == row["data"]]
    if place:
        same = same[(same[place] == row[place]) | same[place].isna()]
    rule = row["rule"]
    wanted = other if other == AVERAGING else control_name(other, rule)
    own = same[same["rule"] == rule].set_index("seed")[column]
    theirs = same[same["rule"] == wanted].set_index("seed")[column]
    if rule == wanted or theirs.empty:
        return interval_columns(name, [])
    return interval_columns(name, (100 * (own - theirs)).dropna().tolist())
