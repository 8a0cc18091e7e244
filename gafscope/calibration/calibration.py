"""What `calibrate` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from gafscope.calibration.table import html_table


@final
@dataclass(frozen=True)
class Calibration:
    """A threshold for GAF, found three ways.

    Attributes:
        tau: The recommended threshold, the analytic one.
        low: Lower end of its 95% interval (jackknife over micro-gradients).
        high: Upper end.
        analytic: tau from the spectrum of the micro-gradients' covariance.
        permutation: tau from the distances under shuffled labels, without their common mean;
            None where the batch is no pair (inputs, targets).
        acceptance: tau that accepts a share `target_acceptance` of the present pairs.
        false_accept: The requested share of independent micro-gradients below tau.
        target_acceptance: The requested share of present pairs below `acceptance`.
        effective_dimension: (tr Sigma)^2 / tr(Sigma^2) of the micro-gradients.
        accepted: Share of the present pairs of micro-gradients that tau accepts.
        permuted_accept: Share of the pairs under shuffled labels that tau accepts; compare with
            `false_accept`. None as `permutation`.
        microbatch_size: Samples in each micro-gradient; tau is for this size.
        rows: Micro-gradients measured.
        notes: How far the ways agree, and what else the reader should know.
    """

    tau: float
    low: float
    high: float
    analytic: float | None
    permutation: float | None
    acceptance: float | None
    false_accept: float
    target_acceptance: float
    effective_dimension: float
    accepted: float
    permuted_accept: float | None
    microbatch_size: int
    rows: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"Calibration(tau={self.tau:.4f} [{self.low:.4f}, {self.high:.4f}], "
            f"analytic={_number(self.analytic)}, permutation={_number(self.permutation)}, "
            f"acceptance={_number(self.acceptance)})\n" + "\n".join(self.notes)
        ).rstrip()

    def _repr_html_(self) -> str:
        rows = {
            "tau": f"{self.tau:.4f} [{self.low:.4f}, {self.high:.4f}]",
            f"analytic, false accepts {self.false_accept:.1%}": _number(self.analytic),
            f"shuffled labels, false accepts {self.false_accept:.1%}": _number(self.permutation),
            f"accepts {self.target_acceptance:.0%} at present": _number(self.acceptance),
            "accepted at present with tau": f"{self.accepted:.1%}",
            "effective dimension": f"{self.effective_dimension:.1f}",
            "micro-gradients": f"{self.rows} of {self.microbatch_size} samples",
            "notes": " ".join(self.notes) or "none",
        }
        return html_table("Calibration", rows)


def _number(value: float | None) -> str:
    return "not available" if value is None else f"{value:.4f}"
