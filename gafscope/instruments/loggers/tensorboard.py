"""TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, final

import numpy as np

from gafscope.instruments.extras import require


@final
class TensorBoard:
    """A `Logger` that writes TensorBoard's event files.

    Args:
        target: The folder to write to, or the loop's own `SummaryWriter`.

    Raises:
        UserError: If a folder is given and TensorBoard is not installed.

    Example:
        >>> from gafscope.instruments.loggers import LogTo
        >>> listeners = [LogTo(TensorBoard("runs/board"))]  # doctest: +SKIP
    """

    def __init__(self, target: str | os.PathLike[str] | Any):
        self._writer: Any = target
        if isinstance(target, str | os.PathLike):
            library = require("torch.utils.tensorboard", "tensorboard", "TensorBoard")
            self._writer = library.SummaryWriter(os.fspath(target))

    def scalars(self, values: Mapping[str, float], step: int, /) -> None:
        """Log numbers, and bring the step to the disk."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def histogram(self, name: str, values: np.ndarray, step: int, /) -> None:
        """Log a distribution."""
        self._writer.add_histogram(name, values, step)

    def image(self, name: str, pixels: np.ndarray, step: int, /) -> None:
        """Log an image."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")
