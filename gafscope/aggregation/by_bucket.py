"""A rule that decides bucket by bucket, as one would inside Ring-AllReduce."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import final

import torch
from torch import Tensor

from gafscope.aggregation.grouped import aggregate_scoped, check_scoped, decide_groups
from gafscope.aggregation.kinds import Aggregate, Rule, ScopedDecision
from gafscope.errors import UserError
from gafscope.gradients import GradientRows, Gramian


@final
@dataclass(frozen=True)
class ByBucket:
    """Let a weighting decide for each bucket of parameters by that bucket's Gramian.

    Buckets fill as DistributedDataParallel fills them once it has seen a backward pass: in the
    reverse order of registration, one type and device a bucket, a bucket being closed as soon as
    it holds that many bytes. (DDP's own first bucket is smaller, 1 MiB.) The parameters of a
    bucket for which the rule skips get no gradient, so that neither momentum nor weight decay
    moves them.

    Args:
        rule: The weighting; without state, since it is asked once a bucket.
        bytes: Size at which a bucket is closed.

    Raises:
        UserError: If the rule needs rows or remembers, or the size is no positive number.

    Example:
        >>> from gafscope.aggregation import GAF
        >>> rows = GradientRows({"a": torch.ones(2, 1), "b": torch.eye(2), "c": torch.ones(2, 1)})
        >>> result = ByBucket(GAF(tau=0.9), bytes=12).aggregate(rows, rows.gramian())
        >>> sorted(result.update), result.scalars["skipped_share"]
        (['a', 'b', 'c'], 0.0)
    """

    rule: Rule
    bytes: int = 25_000_000

    def __post_init__(self):
        check_scoped(self.rule, "ByBucket")
        if not isinstance(self.bytes, Integral) or self.bytes < 1:
            raise UserError(
                f"bytes of ByBucket must be a whole number of at least 1, but is {self.bytes!r}."
            )

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients.

        Args:
            rows: The micro-gradients, parameters in their order of registration.
            gramian: Their inner products, with those of each layer.

        Returns:
            As `decide` decides, one group a bucket.
        """
        return aggregate_scoped(self, rows, gramian)

    def decide(self, gramian: Gramian, parameters: Mapping[str, Tensor], /) -> ScopedDecision:
        """Decide for each bucket.

        Args:
            gramian: Inner products, with those of each layer.
            parameters: Tensors of the parameters' shapes and types by name, in their order.

        Returns:
            As `decide_groups`, one group a bucket.
        """
        return decide_groups(self.rule, gramian, parameters, self._buckets(parameters))

    def _buckets(self, parameters: Mapping[str, Tensor]) -> list[list[str]]:
        buckets: list[list[str]] = []
        filling: dict[tuple[torch.dtype, torch.device], list[str]] = {}
        for name, tensor in reversed(list(parameters.items())):
            kind = (tensor.dtype, tensor.device)
            if kind not in filling:
                filling[kind] = []
                buckets.append(filling[kind])
            filling[kind].append(name)
            if sum(parameters[other].nbytes for other in filling[kind]) >= self.bytes:
                del filling[kind]
        return buckets
