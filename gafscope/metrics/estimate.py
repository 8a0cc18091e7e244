"""A number with its 95% interval."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Estimate:
    """What a metric found.

    Attributes:
        value: The estimate; NaN where the data cannot tell, `note` says why.
        low: Lower end of the 95% interval; NaN where there is none.
        high: Upper end of the 95% interval; NaN where there is none.
        n: How many rows it used.
        note: What the reader should know, e.g. how many rows were left out.

    Example:
        >>> Estimate(0.9731, 0.9512, 0.9903, n=32)
        0.973 [0.951, 0.990] (n=32)
        >>> Estimate(12.5, math.nan, math.nan, n=8, note="1 of 9 rows is not finite")
        12.500 (n=8; 1 of 9 rows is not finite)
    """

    value: float
    low: float
    high: float
    n: int
    note: str = ""

    @property
    def has_interval(self) -> bool:
        """Whether it carries an interval."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def __repr__(self) -> str:
        return f"{self._numbers()} (n={self.n}{'; ' if self.note else ''}{self.note})"

    def _repr_html_(self) -> str:
        note = f"<br><small>{html.escape(self.note)}</small>" if self.note else ""
        return f"<span><b>{self._numbers()}</b> (n={self.n}){note}</span>"

    def _numbers(self) -> str:
        if not self.has_interval:
            return _short(self.value)
        return f"{_short(self.value)} [{_short(self.low)}, {_short(self.high)}]"


def _short(number: float) -> str:
    readable = number == 0 or 1e-3 <= abs(number) < 1e4
    return f"{number:.3f}" if readable else f"{number:.4g}"
