"""The weights at the best validation so far: the control "best validation checkpoint"."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, final

from torch import nn


@final
class BestCheckpoint:
    """Keeps a copy of the model's state at its best validation.

    Better means a higher accuracy, or a lower loss where there is no accuracy.
    """

    def __init__(self):
        self.step = -1
        self._score = -math.inf
        self._state: dict[str, Any] = {}

    def see(self, step: int, model: nn.Module, validation: Mapping[str, float]) -> None:
        """Keep the model's state if this validation is the best.

        Args:
            step: The step that was just done.
            model: The model.
            validation: Its `loss` and `accuracy`.
        """
        accuracy = validation.get("accuracy", math.nan)
        score = -validation["loss"] if math.isnan(accuracy) else accuracy
        if score > self._score:
            self.step, self._score = step, score
            self._state = copy.deepcopy(model.state_dict())

    def restore(self, model: nn.Module) -> dict[str, Any]:
        """Put the best state into the model.

        Args:
            model: The model.

        Returns:
            The state that it had before.
        """
        current = copy.deepcopy(model.state_dict())
        if self._state:
            model.load_state_dict(self._state)
        return current

    def state_dict(self) -> dict[str, Any]:
        """Give all of it for a checkpoint."""
        return {"step": self.step, "score": self._score, "state": self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it over from a checkpoint.

        Args:
            state: What `state_dict` gave.
        """
        self.step, self._score, self._state = state["step"], state["score"], state["state"]
