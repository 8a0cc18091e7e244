"""GAF with a threshold that follows the spread of independent gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from gafscope.aggregation.decision import Decision
from gafscope.aggregation.sequential import Fold, check_tau, decide
from gafscope.errors import UserError
from gafscope.geometry import (
    check_false_accept,
    effective_dimension,
    finite_rows,
    null_quantile,
    null_spectrum,
)
from gafscope.gradients import Gramian

# The spread of tr(Sigma^2) over Gramians of fewer rows is larger than what it would calibrate.
MINIMUM_CALIBRATION_ROWS = 8
# Share of the threshold so far in the next one: two Gramians' noise, and a lag of one.
_MEMORY = 0.5


@final
@dataclass(eq=False)
class CalibratedGAF:
    """GAF whose tau lets a chosen share of independent micro-gradients through.

    Every `every` steps the macrobatch at hand is cut into up to 32 smaller microbatches, and tau
    becomes the distance below which two independent gradients with mean 0 and the covariance of
    these fall with probability `false_accept` (`gafscope.geometry.null_quantile`). With
    microbatches of u samples the covariance is Sigma / u, and a cosine does not depend on its
    scale: only the shape of the spectrum counts, which is the same for the smaller microbatches.
    So one macrobatch serves. Cut small it costs several steps, which is why `every` is not less.

    Two assumptions are made. Each smaller microbatch is a random part of the macrobatch (not
    sorted by class). And the averages are near Gaussian, or their lengths vary only, which a
    cosine does not see. Class-balanced microbatches vary less between classes than their parts,
    so that tau comes out low there.

    New thresholds are averaged with the one so far, half and half, since one Gramian of 32 rows
    leaves the false-accept rate uncertain by 10-30%. Between two calibrations the spectrum moves:
    a network that learns random labels by heart halves its effective dimension within some hundred
    steps, and until the next calibration the threshold lets more through than was asked for. A
    smaller `every` follows sooner and costs more. With k > 2 the rate holds at each visit
    until one is accepted; a running sum of several agreeing gradients is judged by the same tau.

    Args:
        false_accept: Share of independent micro-gradients that may be accepted, in (0, 0.5].
        every: Steps between calibrations; the first one is due at step 0.
        calibration_rows: Smaller microbatches to cut the macrobatch into, at most; at least 8.
        tau: Threshold before the first calibration, where the rule runs without one (replay).

    Raises:
        UserError: If an argument is out of range, a calibration has fewer than 8 finite rows, or
            the rule decides before it is calibrated and without `tau`.

    Example:
        >>> import torch
        >>> rows = torch.randn(32, 400, generator=torch.Generator().manual_seed(0)).double()
        >>> rule = CalibratedGAF(false_accept=0.05)
        >>> rule.calibrate(Gramian(rows @ rows.T))
        >>> f"{rule.fold.tau:.2f}"
        '0.92'
    """

    false_accept: float = 0.05
    every: int = 500
    calibration_rows: int = 32
    tau: float | None = None
    _threshold: float | None = field(default=None, init=False, repr=False)
    _calibrated: bool = field(default=False, init=False, repr=False)
    _dimension: float = field(default=math.nan, init=False, repr=False)

    def __post_init__(self):
        check_false_accept(self.false_accept)
        if self.tau is not None:
            check_tau(self.tau)
        self._threshold = self.tau
        for name, value, least in (
            ("every", self.every, 1),
            ("calibration_rows", self.calibration_rows, MINIMUM_CALIBRATION_ROWS),
        ):
            if value < least:
                raise UserError(
                    f"{name} of CalibratedGAF must be at least {least}, but is {value}; raise it."
                )

    @property
    def fold(self) -> Fold:
        """GAF with the present threshold."""
        if self._threshold is None:
            raise UserError(
                "CalibratedGAF was used before its state exists: it has no threshold yet. Train "
                "with it (the trainer calibrates at step 0), call its calibrate(gramian), or give "
                "it a tau to start with."
            )
        return Fold(tau=self._threshold, keep=1.0, add=1.0, divide=True, minimum=2)

    def __call__(self, gramian: Gramian, /) -> Decision:
        """Decide on k micro-gradients in their order.

        Args:
            gramian: Their inner products.

        Returns:
            The decision, with the distance to the running sum at each visit.
        """
        return decide(self.fold, gramian, "CalibratedGAF")

    def due(self, step: int, /) -> bool:
        """Tell whether it wants a Gramian before the decision of this step."""
        return not self._calibrated or step % self.every == 0

    def calibrate(self, gramian: Gramian, /) -> None:
        """Move the threshold to where this Gramian puts it, half-way after the first time.

        A Gramian that tells nothing (fewer than 8 finite rows, or all rows equal) leaves a
        calibrated threshold as it is.

        Args:
            gramian: Of a macrobatch that is cut into smaller microbatches.

        Raises:
            UserError: If the very first Gramian has fewer than 8 rows.
        """
        if gramian.k < MINIMUM_CALIBRATION_ROWS:
            raise UserError(
                f"CalibratedGAF needs at least {MINIMUM_CALIBRATION_ROWS} microbatches to "
                f"calibrate on, but the macrobatch was cut into {gramian.k}; use larger "
                "microbatches, or GAF with a tau from gafscope.calibrate."
            )
        dimension = effective_dimension(gramian.matrix)
        few = int(finite_rows(gramian.matrix).sum()) < MINIMUM_CALIBRATION_ROWS
        if few or math.isnan(dimension):
            return
        found = null_quantile(null_spectrum(gramian.matrix), self.false_accept)
        before = self._threshold if self._calibrated and self._threshold is not None else found
        self._threshold = _MEMORY * before + (1 - _MEMORY) * found
        self._calibrated, self._dimension = True, dimension

    def scalars(self) -> Mapping[str, float]:
        """Give the threshold, and the effective dimension at the last calibration."""
        tau = math.nan if self._threshold is None else self._threshold
        return {"tau": tau, "effective_dimension": self._dimension}

    def state_dict(self) -> dict[str, Any]:
        """Give the threshold for a checkpoint."""
        return {
            "threshold": self._threshold,
            "calibrated": self._calibrated,
            "dimension": self._dimension,
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take the threshold over from a checkpoint.

        Args:
            state: What `state_dict` gave.
        """
        self._threshold = state["threshold"]
        self._calibrated = state["calibrated"]
        self._dimension = state["dimension"]
