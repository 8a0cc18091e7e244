"""A rule that decides for each parameter on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gafscope.aggregation.grouped import aggregate_groups, check_scoped
from gafscope.aggregation.kinds import Aggregate, Rule
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
            As `aggregate_groups`, one group a parameter.
        """
        return aggregate_groups(self.rule, rows, gramian, [[name] for name in rows.named])
