"""Controls: gates that let an update through, or not, for reasons other than agreement.

A gate is asked only at steps where the rule itself would step. Gates keep no state: what they
answer depends on the step alone, so an interrupted run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch

from gafscope.errors import UserError


@runtime_checkable
class Gate(Protocol):
    """Decides at which steps a run may update."""

    def opens(self, step: int) -> bool:
        """Tell whether the update of this step (counted from 0) may be taken."""
        ...


@final
@dataclass(frozen=True)
class Yoked:
    """Step exactly when another run stepped.

    With `Mean` on fresh microbatches this separates the effect of *which* gradients GAF accepts
    from the effect of *how often* it steps.

    Args:
        stepped: The other run's decisions, true or false, one a step:
            `load_run(folder).scalars["stepped"]`.
    """

    stepped: Iterable[Any]

    def __post_init__(self):
        object.__setattr__(self, "stepped", tuple(bool(value) for value in self.stepped))

    def opens(self, step: int) -> bool:
        """Tell whether the other run stepped at this step.

        Raises:
            UserError: If the other run ended before this step.
        """
        stepped = self.stepped
        assert isinstance(stepped, tuple)
        if step >= len(stepped):
            raise UserError(
                f"The run that this one is yoked to has {len(stepped)} steps, so it cannot "
                f"decide step {step}; train this one for at most {len(stepped)} steps."
            )
        return stepped[step]


@final
@dataclass(frozen=True)
class RandomSkip:
    """Skip a share of the updates at random.

    Args:
        rate: Share of the steps that are skipped, in [0, 1].
        seed: Seed of the choice.

    Raises:
        UserError: If the rate is outside [0, 1].
    """

    rate: float
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.rate <= 1:
            raise UserError(f"The rate of skipped updates must lie in [0, 1], but is {self.rate}.")

    def opens(self, step: int) -> bool:
        """Draw for this step, the same answer every time."""
        # Seeds that differ by a large odd number give unrelated streams for every step.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return float(torch.rand((), generator=generator, dtype=torch.float64)) >= self.rate
