"""A loop's last numbers in a few words."""

from __future__ import annotations

import math
from typing import final

from gafscope.instruments import Record
from gafscope.live.history import accepted_share

_SMOOTH = 0.9


@final
class Words:
    """Says how the loop stands, each number smoothed over about 10 records."""

    def __init__(self):
        self._smooth: dict[str, float] = {}

    def add(self, record: Record) -> None:
        """Take a record in; NaN is passed over.

        Args:
            record: The record.
        """
        values: dict[str, float] = {
            "loss": record.row["loss"],
            "distance": record.row["distance_mean"],
            "accepted": accepted_share(record),
        }
        for name, value in values.items():
            if math.isfinite(value):
                before = self._smooth.get(name, value)
                self._smooth[name] = _SMOOTH * before + (1 - _SMOOTH) * value

    def __str__(self) -> str:
        forms = {"loss": ".4g", "distance": ".3f", "accepted": ".0%"}
        return ", ".join(f"{name} {value:{forms[name]}}" for name, value in self._smooth.items())
