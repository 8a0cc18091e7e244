"""What a live view knows of a loop: every scalar, the last matrix, the layers of some steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from gafscope.geometry import mean_pairwise_distance
from gafscope.gradients import Gramian
from gafscope.instruments import Record
from gafscope.plots.panel import plot_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("step", "loss", "distance_mean")
_MOST_STEPS = 80


@final
class History:
    """Takes records in, cheaply, and draws them.

    Args:
        config: Settings of the run.
    """

    def __init__(self, config: Mapping[str, Any]):
        # `accepted` is kept as a share: of one microbatch, as far as the drawing is concerned.
        self._config = {**config, "microbatches": 1}
        self._scalars: dict[str, list[float]] = {name: [] for name in (*_COLUMNS, "accepted")}
        self._last: Record | None = None
        # Steps whose layers are to be drawn, with their mean distances once these were needed.
        self._layers: dict[int, Gramian | dict[str, float]] = {}
        self._measured = 0
        self._stride = 1

    def add(self, record: Record) -> None:
        """Take a record in.

        Args:
            record: The record of a later step than those before.
        """
        for name in _COLUMNS:
            self._scalars[name].append(float(record.row.get(name, math.nan)))
        self._scalars["accepted"].append(accepted_share(record))
        if record.gramian is None:
            return
        self._last = record
        if record.gramian.layers and self._measured % self._stride == 0:
            self._layers[record.step] = record.gramian
            if len(self._layers) > _MOST_STEPS:
                self._layers = dict(list(self._layers.items())[::2])
                self._stride *= 2
        self._measured += 1

    def draw(self) -> Figure:
        """Draw everything so far; see `plot_panel`."""
        import pandas as pd

        for step, layers in self._layers.items():
            if isinstance(layers, Gramian):
                means = {name: mean_pairwise_distance(k) for name, k in layers.layers.items()}
                self._layers[step] = means
        last = None
        if self._last is not None and self._last.gramian is not None:
            last = (self._last.step, self._last.gramian.cosine_distance().numpy())
        return plot_panel(
            pd.DataFrame(self._scalars), self._config, last, pd.DataFrame(self._layers)
        )


def accepted_share(record: Record) -> float:
    """Give the share of a step's microbatches that the rule accepted, or would have.

    Args:
        record: The record of the step.
    """
    k = len(record.row["distance_to_sum"])
    return record.row["accepted"] / k if k else math.nan
