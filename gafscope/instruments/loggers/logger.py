"""What a board must be able to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class Logger(Protocol):
    """Takes what `LogTo` makes of a record. Names are paths, such as "gafscope/distance".

    In each step the scalars come last.
    """

    def scalars(self, values: Mapping[str, float], step: int, /) -> None:
        """Log one number a name; all are finite."""
        ...

    def histogram(self, name: str, values: np.ndarray, step: int, /) -> None:
        """Log a distribution: its values, in one dimension, finite, at least one."""
        ...

    def image(self, name: str, pixels: np.ndarray, step: int, /) -> None:
        """Log an image, (height, width, 3) of uint8."""
        ...
