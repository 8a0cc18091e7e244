"""What every rule returns, and what every weighting is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from jaxtyping import Bool, Float64
from torch import Tensor

from gafscope.gradients import Gramian


@final
@dataclass(frozen=True, eq=False)
class Decision:
    """What a rule made of k micro-gradients.

    Attributes:
        weights: (k,) float64, sum 1; all 0 when the step is skipped.
        accepted: (k,), which micro-gradients the update is made of.
        step: Whether to update at all.
        distances: (k,) float64, the distance that the rule compared at each visit (its docstring
            says to what), a cosine distance for most; NaN where there was none.
        finite: (k,), which micro-gradients hold no NaN and no infinity.
    """

    weights: Float64[Tensor, " k"]
    accepted: Bool[Tensor, " k"]
    step: bool
    distances: Float64[Tensor, " k"]
    finite: Bool[Tensor, " k"]

    def __repr__(self) -> str:
        kept = f"{int(self.accepted.sum())} of {len(self.accepted)} accepted"
        return f"Decision(step={self.step}, {kept}, weights={_numbers(self.weights)})"

    def _repr_html_(self) -> str:
        head = "<tr><th>row</th><th>accepted</th><th>weight</th><th>distance</th></tr>"
        body = "".join(
            f"<tr><td>{i}</td><td>{'yes' if a else 'no'}</td><td>{w:.4f}</td><td>{d:.4f}</td></tr>"
            for i, (a, w, d) in enumerate(
                zip(
                    self.accepted.tolist(),
                    self.weights.tolist(),
                    self.distances.tolist(),
                    strict=True,
                )
            )
        )
        return f"<table><caption>step: {'yes' if self.step else 'no'}</caption>{head}{body}</table>"


@runtime_checkable
class Weighting(Protocol):
    """A rule that needs inner products only: it maps a Gramian to a decision."""

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide which micro-gradients to use and how much of each."""
        ...


def _numbers(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values.tolist()) + "]"
