"""Weights & Biases, online or offline as the run is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from gafscope.errors import UserError
from gafscope.instruments.extras import require


@final
class WeightsAndBiases:
    """A `Logger` that writes to a Weights & Biases run.

    Its charts count `gafscope/step`, so that they do not depend on how the loop counts its own
    calls of `wandb.log`.

    Args:
        run: What `wandb.init` returned; None for the run that is active.

    Raises:
        UserError: If wandb is not installed, or no run is given and none is active.

    Example:
        >>> import wandb  # doctest: +SKIP
        >>> run = wandb.init(mode="offline")  # doctest: +SKIP
        >>> listeners = [LogTo(WeightsAndBiases(run))]  # doctest: +SKIP
    """

    def __init__(self, run: Any = None):
        self._wandb = require("wandb", "wandb", "WeightsAndBiases")
        self._run = self._wandb.run if run is None else run
        if self._run is None:
            raise UserError("WeightsAndBiases needs a run, but none is active: call wandb.init().")
        self._run.define_metric("gafscope/step", hidden=True)
        self._run.define_metric("gafscope/*", step_metric="gafscope/step")

    def scalars(self, values: Mapping[str, float], step: int, /) -> None:
        """Log numbers, and with them what came before in this step."""
        self._run.log({**values, "gafscope/step": step})

    def histogram(self, name: str, values: np.ndarray, step: int, /) -> None:
        """Log a distribution."""
        self._run.log({name: self._wandb.Histogram(values)}, commit=False)

    def image(self, name: str, pixels: np.ndarray, step: int, /) -> None:
        """Log an image."""
        self._run.log({name: self._wandb.Image(pixels)}, commit=False)
