"""What a comparison of rules comes to: the choice by validation, and how often filtering leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gafscope.errors import UserError
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd


def check_validated(settings: TrainSettings) -> None:
    """Refuse a study of best checkpoints that never validates.

    Args:
        settings: How it trains.

    Raises:
        UserError: If the first validation comes after the last step.
    """
    if settings.validate_every > settings.steps:
        raise UserError(
            f"The study looks at the best checkpoint by validation, but validate_every="
            f"{settings.validate_every} never comes in steps={settings.steps}; validate more often."
        )


def best_by_validation(runs: pd.DataFrame, column: str) -> Any:
    """Choose the value of a column whose runs validate best at their end.

    Args:
        runs: From `conditions.measure_conditions`, those to choose from.
        column: What is chosen, e.g. the threshold.

    Returns:
        The value with the highest mean validation accuracy over the seeds; the first of equals.
    """
    return runs.groupby(column, sort=False)["validation_accuracy"].mean().idxmax()


def tally(table: pd.DataFrame) -> str:
    """Count how often filtering leads, and how often an early stop beats it.

    Args:
        table: From `conditions.compare`, with rows that have a yoked control.

    Returns:
        A sentence.
    """
    filtering = table[table["over_yoked"].notna()]
    above, over = (
        int((filtering[f"{name}_low"] > 0).sum()) for name in ("over_averaging", "over_yoked")
    )
    below = int((filtering["over_yoked_high"] < 0).sum())
    return (
        f"Of {len(filtering)} comparisons filtering is above averaging in {above}, above its yoked "
        f"control in {over} and below it in {below}, by the 95% interval."
    )


def behind_best_checkpoint(table: pd.DataFrame, place: str, rivals: Sequence[str]) -> str:
    """Count where filtering's end is behind the best checkpoint of a rival that does not filter.

    Args:
        table: From `conditions.compare`, with rows that have a yoked control.
        place: The column of the place.
        rivals: Names of rules; a rule without a place is a rival everywhere.

    Returns:
        A sentence.
    """
    filtering = table[table["over_yoked"].notna()]
    behind = 0
    for row in filtering.to_dict("records"):
        same = (table[place] == row[place]) | table[place].isna()
        rival = table[same & (table["data"] == row["data"]) & table["rule"].isin(rivals)]
        behind += int(row["test_accuracy"] < rival["best_test_accuracy"].max())
    return (
        f"In {behind} of {len(filtering)} the best checkpoint by validation of {_listed(rivals)} "
        "is better than filtering's end."
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
