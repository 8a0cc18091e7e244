"""Which part of the microbatches a rule accepted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def accepted_fraction(scalars: pd.DataFrame, config: Mapping[str, Any]) -> pd.Series:
    """Divide the accepted microbatches of each step by k.

    Args:
        scalars: `Run.scalars`; k is the length of `distance_to_sum`.
        config: `Run.config`; its `microbatches` is k where a step has no such list.

    Returns:
        One number in [0, 1] a step; NaN where acceptance or k is not known.
    """
    table = scalars.reindex(columns=["accepted", "distance_to_sum"])
    usual = config.get("microbatches")
    usual = usual if isinstance(usual, int) else math.nan
    k = [len(row) if isinstance(row, list) else usual for row in table["distance_to_sum"]]
    return table["accepted"].astype(float) / k


def every_step_recorded(scalars: pd.DataFrame) -> bool:
    """Tell whether a record has a row for each step, so that updates can be counted.

    Args:
        scalars: `Run.scalars`; a watched loop may have recorded every tenth step only.
    """
    steps = scalars["step"].tolist() if "step" in scalars else []
    return bool(steps) and steps[-1] + 1 == len(steps)
