"""The numbers about a run that its report speaks of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from gafscope.records import Run
from gafscope.records.acceptance import accepted_fraction, every_step_recorded

if TYPE_CHECKING:
    import pandas as pd

LISTS = ("distance_to_sum", "not_finite")
_LONGEST_SPAN = 100
_SHORTEST_SPAN = 3


@final
@dataclass(frozen=True)
class Trend:
    """A quantity at the start and at the end of a run.

    Attributes:
        first: Mean over the first values.
        last: Mean over the last ones.
        span: How many values each mean is over: a tenth of them, 3 to 100 where there are as
            many.
        count: How many values there are.
    """

    first: float
    last: float
    span: int
    count: int


@final
@dataclass(frozen=True)
class Facts:
    """What a run's record says, in numbers; None and NaN where it says nothing.

    Attributes:
        steps: Steps in the record.
        updates: Steps that moved the parameters; None where not every step was recorded.
        idle: Steps since the last update.
        offered: Micro-gradients that the rule saw.
        accepted: Share of them that it accepted.
        not_finite: How many were NaN or infinite.
        first_not_finite: The first step with one of these.
        distance: Cosine distance over all pairs of the micro-gradients.
        distance_to_sum: Cosine distance to the sum of those accepted before.
        loss: Training loss.
        train_accuracy: Training accuracy.
        validation_accuracy: At the last validation.
        validation_step: The step of it.
        best_validation_accuracy: The highest one.
        best_validation_step: The step of it.
    """

    steps: int
    updates: int | None
    idle: int
    offered: int | None
    accepted: float
    not_finite: int | None
    first_not_finite: int | None
    distance: Trend | None
    distance_to_sum: Trend | None
    loss: Trend | None
    train_accuracy: Trend | None
    validation_accuracy: float
    validation_step: int
    best_validation_accuracy: float
    best_validation_step: int


def readable(run: Run) -> pd.DataFrame:
    """Give a run's scalars with numbers only, lists apart.

    Args:
        run: The run; what a stranger's record holds in place of a number becomes NaN.

    Returns:
        One row a step, with a column `step`.
    """
    import pandas as pd

    table = run.scalars.copy()
    for name in table.columns:
        if name not in LISTS:
            table[name] = pd.to_numeric(table[name], errors="coerce")
    if "step" not in table or table["step"].isna().any():
        table["step"] = range(len(table))
    return table


def gather(run: Run) -> Facts:
    """Take the numbers out of a run's record.

    Args:
        run: The run, of at least one step.

    Returns:
        The numbers.
    """
    table = readable(run)
    steps = table["step"].astype(int).tolist()
    complete = every_step_recorded(table)
    stepped = table["stepped"].fillna(0).astype(bool).to_numpy() if "stepped" in table else None
    sizes = [len(row) for row in _lists(table, "distance_to_sum")]
    not_finite = [len(row) for row in _lists(table, "not_finite")]
    bad = [step for step, count in zip(steps, not_finite, strict=False) if count]
    validation = _column(table, "validation_accuracy")
    best = int(validation.to_numpy().argmax()) if len(validation) else -1
    return Facts(
        steps=len(table),
        updates=int(stepped.sum()) if stepped is not None and complete else None,
        idle=0 if stepped is None else _idle(stepped),
        offered=sum(sizes) or None,
        accepted=float(accepted_fraction(table, run.config).mean()),
        not_finite=sum(not_finite) if "not_finite" in table else None,
        first_not_finite=bad[0] if bad else None,
        distance=_trend(_column(table, "distance_mean")),
        distance_to_sum=_trend(_means(table)),
        loss=_trend(_column(table, "loss")),
        train_accuracy=_trend(_column(table, "accuracy")),
        validation_accuracy=float(validation.iloc[-1]) if len(validation) else math.nan,
        validation_step=int(validation.index[-1]) if len(validation) else -1,
        best_validation_accuracy=float(validation.max()) if len(validation) else math.nan,
        best_validation_step=int(validation.index[best]) if len(validation) else -1,
    )


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    column = table.reindex(columns=["step", name]).astype(float).set_index("step")[name]
    return column[np.isfinite(column)]


def _trend(values: pd.Series) -> Trend | None:
    if not len(values):
        return None
    tenth = max(_SHORTEST_SPAN, min(_LONGEST_SPAN, len(values) // 10))
    span = max(1, min(tenth, len(values) // 2))
    first, last = float(values.iloc[:span].mean()), float(values.iloc[-span:].mean())
    return Trend(first, last, span, len(values))


def _lists(table: pd.DataFrame, name: str) -> list[list[Any]]:
    if name not in table:
        return []
    return [row if isinstance(row, list) else [] for row in table[name]]


def _means(table: pd.DataFrame) -> pd.Series:
    """Average each step's distances to the running sum."""
    import pandas as pd

    means = [_mean(row) for row in _lists(table, "distance_to_sum")]
    return pd.Series(means, dtype=float).dropna()


def _mean(row: Iterable[Any]) -> float:
    known = [x for x in row if isinstance(x, (int, float)) and math.isfinite(x)]
    return sum(known) / len(known) if known else math.nan


def _idle(stepped: np.ndarray) -> int:
    backwards = stepped[::-1]
    return int(backwards.argmax()) if backwards.any() else len(backwards)
