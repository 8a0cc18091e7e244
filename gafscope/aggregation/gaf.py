"""Gradient Agreement Filtering, Algorithm 1 of arXiv 2412.18052."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gafscope.aggregation.anchor import anchored, check_anchor
from gafscope.aggregation.decision import Decision
from gafscope.aggregation.sequential import Fold, check_tau, decide
from gafscope.gradients import Gramian


@final
@dataclass(frozen=True)
class GAF:
    """Average the micro-gradients that agree with the running sum; skip when no two agree.

    The running sum starts as s = g_1, c = 1. Each further g_i is accepted when
    `1 - <g_i, s> / (|g_i| |s|) <= tau`; then s += g_i, c += 1. If c = 1 at the end the update is
    skipped, else it is s / c (equation 5 of the paper): accepted rows weigh 1/c each.
    The sum starts at the first finite gradient that is not zero.

    Another anchor than "first" starts the sum elsewhere and then visits the rest from the nearest
    to the anchor to the farthest (`gafscope.aggregation.anchor` has the rules and the ties). It
    needs all inner products before the first visit, so it does not stream.

    Args:
        tau: Largest accepted cosine distance, in [0, 2]; 2 is plain averaging.
        anchor: Where the sum starts: "first"; "random" (drawn from the seed and the Gramian);
            "best" or "worst", the start with the largest or the smallest agreement of all.
        seed: Seed of the random anchor.

    Raises:
        UserError: If tau is out of range, the anchor unknown, or (when called) there is only one
            micro-gradient.

    Example:
        >>> import torch
        >>> K = torch.tensor([[1.0, 0.9, -0.9], [0.9, 1.0, -0.9], [-0.9, -0.9, 1.0]])
        >>> GAF(tau=0.97)(Gramian(K.double()))
        Decision(step=True, 2 of 3 accepted, weights=[0.5, 0.5, 0])
    """

    tau: float = 0.97
    anchor: str = "first"
    seed: int = 0

    def __post_init__(self):
        check_tau(self.tau)
        check_anchor(self.anchor)

    @property
    def fold(self) -> Fold | None:
        """Sum the accepted gradients and divide by their number; None unless `anchor="first"`."""
        return self._fold() if self.anchor == "first" else None

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients.

        Args:
            gramian: Their inner products.

        Returns:
            The decision, with the distance to the running sum at each visit.
        """
        if self.anchor == "first":
            return decide(self._fold(), gramian, "GAF")
        return anchored(self._fold(), gramian, "GAF", self.anchor, self.seed)

    def __repr__(self) -> str:
        # What the settings leave without effect is left out: runs record their rule by this.
        seed = f", seed={self.seed}" if self.anchor == "random" else ""
        anchor = f", anchor={self.anchor!r}" if self.anchor != "first" else ""
        return f"GAF(tau={self.tau}{anchor}{seed})"

    def _fold(self) -> Fold:
        return Fold(tau=self.tau, keep=1.0, add=1.0, divide=True, minimum=2)
