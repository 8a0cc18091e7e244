"""A rule that decides for each parameter on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from gafscope.aggregation.grouped import aggregate_scoped, check_scoped, decide_groups
from gafscope.aggregation.kinds import Aggregate, Rule, ScopedDecision
from gafscope.gradients import GradientRows, Gramian


@final
@dataclass(frozen=True)
class ByLayer:
    """Let a weighting decide for each parameter's tensor by that tensor's Gramian.

    A parameter for which the rule skips gets no gradient, so that neither momentum nor weight
    decay moves it.

    Args:
        rule: The weighting; without state, since it is asked once a parameter.

    Raises:
        UserError: If the rule needs rows or remembers.

    Example:
        >>> import torch
        >>> from gafscope.aggregation import GAF
        >>> rows = GradientRows({"a": torch.tensor([[1.0], [3.0]]), "b": torch.eye(2)})
        >>> ByLayer(GAF(tau=0.9)).aggregate(rows, rows.gramian()).update
        {'a': tensor([2.])}
    """

    rule: Rule

    def __post_init__(self):
        check_scoped(self.rule, "ByLayer")

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        """Combine k micro-gradients.

        Args:
            rows: The micro-gradients.
            gramian: Their inner products, with those of each layer.

        Returns:
            As `decide` decides, one group a parameter.
        """
        return aggregate_scoped(self, rows, gramian)

    def decide(self, gramian: Gramian, parameters: Mapping[str, Tensor], /) -> ScopedDecision:
        """Decide for each parameter.

        Args:
            gramian: Inner products, with those of each layer.
            parameters: Tensors of the parameters' shapes by name.

        Returns:
            As `decide_groups`, one group a parameter.
        """
        return decide_groups(self.rule, gramian, parameters, [[name] for name in parameters])
