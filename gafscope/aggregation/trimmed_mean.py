"""The coordinate-wise trimmed mean (arXiv 1803.01498)."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, final

import torch
from torch import Tensor

from gafscope.aggregation.coordinatewise import combine_coordinates
from gafscope.aggregation.kinds import Aggregate
from gafscope.errors import UserError
from gafscope.gradients import GradientRows, Gramian


@final
@dataclass(frozen=True)
class TrimmedMean:
    """Average each coordinate without its b largest and b smallest values.

    Of the c finite rows, c - 2b values remain at each coordinate (definition 2 of the paper, with
    b = beta c). Where c <= 2b, since rows are not finite, the step is skipped.

    Args:
        trim: b, values left out at each end; at least 1.

    Raises:
        UserError: If trim is no such number, or (when called) k <= 2b.

    Example:
        >>> rows = GradientRows({"w": torch.tensor([[1.0], [2.0], [900.0]])})
        >>> TrimmedMean(trim=1).aggregate(rows, rows.gramian()).update["w"]
        tensor([2.])
    """

    coordinatewise: ClassVar[bool] = True
    trim: int = 1

    def __post_init__(self):
        if not isinstance(self.trim, Integral) or self.trim < 1:
            raise UserError(
                f"trim of TrimmedMean must be a whole number of at least 1, but is {self.trim!r}; "
                "for no trimming use Mean."
            )

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients.

        Args:
            rows: The micro-gradients.
            gramian: Their inner products.

        Returns:
            The trimmed mean; every finite row counts as accepted, and `kept` is 1 on a step.
        """
        b = int(self.trim)
        if gramian.k <= 2 * b:
            raise UserError(
                f"TrimmedMean(trim={b}) leaves out {2 * b} values a coordinate and needs more "
                f"micro-gradients than that, but there are k = {gramian.k}; use microbatches="
                f"{2 * b + 1} or more, or a smaller trim."
            )

        def combine(part: Tensor) -> tuple[Tensor, Tensor]:
            inner = part.sort(0).values[b : len(part) - b]
            return inner.mean(0), torch.ones_like(inner[0], dtype=torch.bool)

        return combine_coordinates(rows, gramian, combine, minimum=2 * b + 1)
