"""MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from gafscope.errors import UserError
from gafscope.instruments.extras import require

_QUARTILES = ("lowest", "lower_quartile", "median", "upper_quartile", "highest")


@final
class MLflow:
    """A `Logger` that writes to an MLflow run.

    MLflow has no histograms: five numbers of each are logged as metrics, such as
    `gafscope/distance/median`: lowest, lower_quartile, median, upper_quartile, highest.

    Args:
        run_id: The run; None for the one that is active.

    Raises:
        UserError: If MLflow is not installed, or no run is given and none is active.

    Example:
        >>> import mlflow  # doctest: +SKIP
        >>> with mlflow.start_run():  # doctest: +SKIP
        ...     listeners = [LogTo(MLflow())]
    """

    def __init__(self, run_id: str | None = None):
        self._mlflow = require("mlflow", "mlflow", "MLflow")
        active = self._mlflow.active_run()
        if run_id is None and active is None:
            raise UserError(
                "MLflow needs a run, but none is active: call mlflow.start_run(), or give run_id."
            )
        self._id = active.info.run_id if run_id is None else run_id
        self._client = self._mlflow.MlflowClient()

    def scalars(self, values: Mapping[str, float], step: int, /) -> None:
        """Log numbers."""
        self._mlflow.log_metrics(dict(values), step=step, run_id=self._id)

    def histogram(self, name: str, values: np.ndarray, step: int, /) -> None:
        """Log a distribution by its quartiles."""
        quartiles = dict(zip(_QUARTILES, np.quantile(values, np.linspace(0, 1, 5)), strict=True))
        self.scalars({f"{name}/{which}": float(q) for which, q in quartiles.items()}, step)

    def image(self, name: str, pixels: np.ndarray, step: int, /) -> None:
        """Log an image."""
        self._client.log_image(self._id, pixels, key=name, step=step)
