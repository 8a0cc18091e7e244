"""How ranks agree: what `distribute` was told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch

from gafscope.aggregation import Rule
from gafscope.distributed.order import Order, visiting_order

Scope = Literal["model", "bucket"]
"""One decision a step; one decision for each of DDP's buckets, which is another algorithm."""


@final
@dataclass(frozen=True)
class Options:
    """The checked options of `distribute`; it documents them."""

    rule: Rule
    scope: Scope
    order: Order
    seed: int
    dtype: torch.dtype | None
    group_size: int

    def visits(self, k: int, step: int) -> list[int]:
        """Give the order in which the rows of a step are visited."""
        return visiting_order(self.order, k, self.seed, step)

    def described(self) -> dict[str, object]:
        """Give what every rank must have alike."""
        return {
            "rule": self.rule,
            "scope": self.scope,
            "order": self.order,
            "seed": self.seed,
            "dtype": self.dtype,
            "group_size": self.group_size,
        }
