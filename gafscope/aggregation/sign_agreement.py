"""The AND-mask, "Learning explanations that are hard to vary" (arXiv 2009.00329)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from gafscope.aggregation.coordinatewise import combine_coordinates, sign_sum
from gafscope.aggregation.kinds import Aggregate
from gafscope.errors import UserError
from gafscope.gradients import GradientRows, Gramian


@final
@dataclass(frozen=True)
class SignAgreement:
    """Keep the coordinates on whose sign the micro-gradients agree; set the others to 0.

    Over the c finite rows, coordinate j of the update is their mean where
    `|sum_i sign(g_ij)| >= share * c`, else 0 (the paper's mask with threshold tau = share). A zero
    has no sign. With fewer than two finite rows, or nothing kept, the step is skipped.

    Args:
        share: Smallest absolute mean sign that is kept, in [0, 1]: 1 wants all signs equal, 0.5
            three of four, 0 is plain averaging.

    Raises:
        UserError: If share is out of range, or (when called) there is only one micro-gradient.

    Example:
        >>> rows = GradientRows({"w": torch.tensor([[1.0, 2.0], [3.0, -4.0]])})
        >>> SignAgreement().aggregate(rows, rows.gramian()).update["w"]
        tensor([2., 0.])
    """

    coordinatewise: ClassVar[bool] = True
    share: float = 1.0

    def __post_init__(self):
        check_share(self.share, "SignAgreement")

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients.

        Args:
            rows: The micro-gradients.
            gramian: Their inner products.

        Returns:
            The masked mean; `kept` is the share of coordinates that pass the mask.
        """
        check_pair(gramian.k, "SignAgreement")

        def combine(part: Tensor) -> tuple[Tensor, Tensor]:
            # Sums of signs are whole numbers; 0.6 * 5 must not ask for more than 3.
            needed = math.ceil(self.share * len(part) - 1e-9)
            mask = sign_sum(part).abs() >= needed
            return torch.where(mask, part.mean(0), 0.0), mask

        return combine_coordinates(rows, gramian, combine, minimum=2)


def check_share(share: float, rule: str) -> None:
    """Refuse a share outside [0, 1].

    Args:
        share: Absolute mean sign.
        rule: The rule's name, for the message.

    Raises:
        UserError: If it is out of range.
    """
    if not 0 <= share <= 1:
        raise UserError(
            f"share of {rule} is an absolute mean sign and must lie in [0, 1] (1: all signs "
            f"equal), but it is {share}."
        )


def check_pair(k: int, rule: str) -> None:
    """Refuse to compare a single row.

    Args:
        k: Number of micro-gradients.
        rule: The rule's name, for the message.

    Raises:
        UserError: If there is only one.
    """
    if k < 2:
        raise UserError(
            f"{rule} needs at least 2 micro-gradients to compare, but there is k = {k}; "
            "use microbatches=2 or more."
        )
