"""From records to what boards show."""

from __future__ import annotations

import math
from typing import final

import matplotlib as mpl
import numpy as np

from gafscope.instruments.listener import Record
from gafscope.instruments.loggers.logger import Logger

_SIDE = 256


@final
class LogTo:
    """Listens to a watched loop and writes each record to a logger.

    All names begin with "gafscope/". Scalars: the numbers of the record's row (`loss`,
    `accepted`, `distance_mean`, `noise_scale` ...), those that are not finite left out.
    Histograms: `distance`, the cosine distances of all pairs; `distance_to_sum`, those that the
    rule decided on; `norm`, the norms of the rows. Image: `distances`, the matrix of cosine
    distances, blue at 0 (aligned), white at 1 (orthogonal), red at 2 (opposed), grey where a row is
    not finite.

    Args:
        logger: A `TensorBoard`, `WeightsAndBiases` or `MLflow`, or another `Logger`.

    Example:
        >>> from gafscope.instruments.loggers import LogTo, TensorBoard
        >>> board = TensorBoard("runs/board")  # doctest: +SKIP
        >>> with watch(model, optimizer, listeners=[LogTo(board)]):  # doctest: +SKIP
        ...     train()
    """

    def __init__(self, logger: Logger):
        self._logger = logger

    def __call__(self, record: Record) -> None:
        """Write one record.

        Args:
            record: The record.
        """
        logger, step, gramian = self._logger, record.step, record.gramian
        self._histogram("distance_to_sum", np.array(record.row["distance_to_sum"]), step)
        if gramian is not None:
            distances = gramian.cosine_distance().numpy()
            self._histogram("distance", distances[np.triu_indices(len(distances), k=1)], step)
            self._histogram("norm", np.sqrt(gramian.matrix.diagonal().numpy()), step)
            logger.image("gafscope/distances", heat_map(distances), step)
        numbers = {
            name: float(value)
            for name, value in record.row.items()
            if name != "step" and isinstance(value, bool | int | float) and math.isfinite(value)
        }
        logger.scalars({f"gafscope/{name}": value for name, value in numbers.items()}, step)

    def _histogram(self, name: str, values: np.ndarray, step: int) -> None:
        finite = values[np.isfinite(values)]
        if len(finite):
            self._logger.histogram(f"gafscope/{name}", finite, step)


def heat_map(distances: np.ndarray) -> np.ndarray:
    """Colour a matrix of cosine distances, in the colours of `Gramian.plot`.

    Args:
        distances: (k, k), from 0 to 2; NaN is grey.

    Returns:
        (height, width, 3) of uint8, one square of pixels an entry.
    """
    colours = mpl.colormaps["RdBu_r"].with_extremes(bad="0.75")
    pixels = colours(np.ma.masked_invalid(distances / 2), bytes=True)[..., :3]
    square = math.ceil(_SIDE / len(distances))
    return np.ascontiguousarray(pixels.repeat(square, axis=0).repeat(square, axis=1))
