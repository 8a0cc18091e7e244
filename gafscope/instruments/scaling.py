"""The factor that a GradScaler puts into the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True, eq=False)
class LossScale:
    """Reads a GradScaler.

    Attributes:
        scaler: The scaler, or None.
    """

    scaler: Any = None

    @property
    def active(self) -> bool:
        """Whether there is a scaler that scales."""
        return self.scaler is not None and self.scaler.is_enabled()

    def factor(self) -> float:
        """Give the factor, 1 without a scaler."""
        return float(self.scaler.get_scale()) if self.active else 1.0
