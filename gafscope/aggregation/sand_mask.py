"""The SAND-mask (arXiv 2106.02266): a smooth AND-mask that also looks at the variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gafscope.aggregation.coordinatewise import combine_coordinates, sign_sum
from gafscope.aggregation.kinds import Aggregate
from gafscope.aggregation.sign_agreement import check_pair, check_share
from gafscope.errors import UserError
from gafscope.gradients import GradientRows, Gramian


@final
@dataclass(frozen=True)
class SANDMask:
    """Weigh each coordinate by how well the micro-gradients agree on it.

    Over the c finite rows, coordinate j of the update is `m_j mean_i(g_ij) / mean_j(m_j)` with
    `m_j = max(0, tanh(sharpness / var_i(g_ij) * (|mean_i sign(g_ij)| - share)))`; the variance is
    the unbiased one and the mean of the mask is over the parameter's tensor, both as in the
    authors' code (DomainBed). With fewer than two finite rows, or nothing kept, the step is
    skipped.

    Args:
        share: Absolute mean sign above which a coordinate is kept, in [0, 1); the paper's tau.
        sharpness: Factor inside tanh, the authors' k; the larger, the closer to an AND-mask.

    Raises:
        UserError: If an argument is out of range, or (when called) there is only one
            micro-gradient.

    Example:
        >>> rows = GradientRows({"w": torch.tensor([[1.0, 2.0], [1.0, -4.0]])})
        >>> SANDMask().aggregate(rows, rows.gramian()).update["w"]
        tensor([2., 0.])
    """

    share: float = 0.7
    sharpness: float = 10.0

    def __post_init__(self):
        check_share(self.share, "SANDMask")
        if self.share == 1:
            raise UserError(
                "share of SANDMask must lie below 1, where the mask keeps nothing; use "
                "SignAgreement(share=1.0) for unanimous signs."
            )
        if not 0 < self.sharpness < math.inf:
            raise UserError(
                f"sharpness of SANDMask must be positive and finite, but is {self.sharpness}."
            )

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients.

        Args:
            rows: The micro-gradients.
            gramian: Their inner products.

        Returns:
            The masked mean; `kept` is the share of coordinates whose mask is above 0.
        """
        check_pair(gramian.k, "SANDMask")

        def combine(part: Tensor) -> tuple[Tensor, Tensor]:
            excess = sign_sum(part).abs() / len(part) - self.share
            # Where the rows are all equal the variance is 0: tanh of an infinity, or of 0 * inf.
            mask = torch.tanh(self.sharpness / part.var(0) * excess).clamp(min=0).nan_to_num(0.0)
            kept = mask > 0
            combined = mask * part.mean(0) / mask.mean().clamp(min=1e-10)
            return torch.where(kept, combined, 0.0), kept

        return combine_coordinates(rows, gramian, combine, minimum=2)
