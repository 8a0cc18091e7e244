"""The coordinate-wise median (arXiv 1803.01498)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from gafscope.aggregation.coordinatewise import combine_coordinates
from gafscope.aggregation.kinds import Aggregate
from gafscope.gradients import GradientRows, Gramian


@final
@dataclass(frozen=True)
class CoordinateMedian:
    """Take the median of the finite micro-gradients at each coordinate.

    For an even number of rows it is the mean of the two middle values (definition 1 of the
    paper). It steps whenever one row is finite.

    Example:
        >>> rows = GradientRows({"w": torch.tensor([[1.0], [2.0], [4.0], [900.0]])})
        >>> CoordinateMedian().aggregate(rows, rows.gramian()).update["w"]
        tensor([3.])
    """

    coordinatewise: ClassVar[bool] = True

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients.

        Args:
            rows: The micro-gradients.
            gramian: Their inner products.

        Returns:
            The median; every finite row counts as accepted, and `kept` is 1 on a step.
        """
        return combine_coordinates(rows, gramian, _median, minimum=1)


def _median(part: Tensor) -> tuple[Tensor, Tensor]:
    ordered = part.sort(0).values
    middle = ordered[(len(part) - 1) // 2 : len(part) // 2 + 1]
    return middle.mean(0), torch.ones_like(middle[0], dtype=torch.bool)
