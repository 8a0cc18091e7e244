"""Find the threshold at which GAF lets a chosen share of independent gradients through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gafscope import geometry
from gafscope.calibration.calibration import Calibration
from gafscope.calibration.microbatches import MINIMUM_ROWS, draw_microbatches
from gafscope.calibration.permutation import is_pair, pair_distances, permuted_distances
from gafscope.errors import UserError
from gafscope.gradients import Loss, gramian

_PERMUTATIONS = 4
# With fewer rows tr(Sigma^2) is uncertain by more than an eighth.
_PRECISE_ROWS = 16


def calibrate(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    microbatch_size: int,
    false_accept: float = 0.05,
    target_acceptance: float = 0.5,
    seed: int = 0,
    engine: str = "auto",
    memory_budget: int | None = None,
) -> Calibration:
    """Find tau at the present parameters, three ways.

    The cosine of independent micro-gradients spreads by `1 / sqrt(d_eff)`, so what tau means
    depends on the model and its state. From the Gramian of up to 64 random disjoint microbatches:

    - analytic: the distance below which two independent Gaussian gradients of mean 0 and the
      measured covariance fall with probability `false_accept` (`gafscope.geometry.null_quantile`);
    - permutation: the `false_accept` quantile of the pairwise distances when the targets are
      shuffled among the inputs (four times), the common mean removed;
    - acceptance: the `target_acceptance` quantile of the pairwise distances as they are, which
      says what tau would accept, not whether it ought to.

    The first is recommended; the notes say whether the second bears it out. All hold for two
    micro-gradients (k = 2, and the first comparison of larger k).

    Args:
        model: The model; left as it was.
        loss: As in `gramian`.
        data: A batch, or a whole data set as a batch: a pytree of tensors with n samples.
        microbatch_size: u, the samples in a micro-gradient; n must be at least 8 u, better 16 u.
        false_accept: Share of independent pairs that may be accepted, in (0, 0.5].
        target_acceptance: Share of the present pairs to accept, in (0, 1).
        seed: Seed of microbatches, shuffles and dropout masks.
        engine: As in `gramian`.
        memory_budget: As in `gramian`.

    Returns:
        The thresholds.

    Raises:
        UserError: If an argument is out of range, the data is too small, fewer than 8
            micro-gradients are finite, or as `gramian`.

    Example:
        >>> model, loss = nn.Linear(30, 1), lambda model, batch: model(batch).squeeze(1) ** 2
        >>> data = torch.randn(400, 30, generator=torch.Generator().manual_seed(0))
        >>> found = calibrate(model, loss, data, microbatch_size=10)
        >>> found.low < found.tau < found.high, found.permutation
        (True, None)
    """
    geometry.check_false_accept(false_accept)
    if not 0 < target_acceptance < 1:
        raise UserError(
            "target_acceptance is the share of present pairs to accept and must lie in (0, 1), "
            f"but is {target_acceptance}."
        )
    generator = torch.Generator().manual_seed(seed)
    batch, rows = draw_microbatches(data, microbatch_size, generator)

    def measure(batch: Any) -> Tensor:
        found = gramian(
            *(model, loss, batch, rows),
            layers=False,
            engine=engine,
            memory_budget=memory_budget,
            seed=seed,
        )
        return found.matrix.cpu()

    matrix = measure(batch)
    finite = _check_finite(matrix)
    tau, low, high = geometry.null_interval(matrix, false_accept)
    present = pair_distances(matrix)
    null = None
    if is_pair(batch):
        null = permuted_distances(measure, batch, _PERMUTATIONS, generator)
    notes = _notes(null, tau, false_accept) + _warnings(rows, finite)
    return Calibration(
        tau=tau,
        low=low,
        high=high,
        analytic=tau,
        permutation=_quantile(null, false_accept),
        acceptance=_quantile(present, target_acceptance),
        false_accept=false_accept,
        target_acceptance=target_acceptance,
        effective_dimension=geometry.effective_dimension(matrix),
        accepted=_share(present, tau),
        permuted_accept=None if null is None else _share(null, tau),
        microbatch_size=microbatch_size,
        rows=finite,
        notes=notes,
    )


def _check_finite(matrix: Tensor) -> int:
    finite = int(geometry.finite_rows(matrix).sum())
    if finite < MINIMUM_ROWS:
        raise UserError(
            f"Calibration needs at least {MINIMUM_ROWS} finite micro-gradients, but only {finite} "
            f"of {len(matrix)} are; look for NaN in the data or the model's weights."
        )
    return finite


def _notes(null: Tensor | None, tau: float, false_accept: float) -> tuple[str, ...]:
    if null is None:
        return (
            "Shuffled labels are not available: the batch is no pair (inputs, targets), so only "
            "the spectrum supports tau.",
        )
    rate = _share(null, tau)
    agree = 0.5 * false_accept <= rate <= 1.5 * false_accept
    return (
        f"With shuffled labels tau accepts {rate:.1%} where {false_accept:.1%} were asked for: the "
        f"spectrum and the shuffled labels {'agree' if agree else 'DISAGREE'}.",
    )


def _warnings(rows: int, finite: int) -> tuple[str, ...]:
    notes = []
    if finite < _PRECISE_ROWS:
        notes.append(f"Only {finite} micro-gradients: tau is imprecise, see its interval.")
    if finite < rows:
        notes.append(f"{rows - finite} of {rows} micro-gradients are not finite and left out.")
    return tuple(notes)


def _quantile(values: Tensor | None, share: float) -> float | None:
    return None if values is None or not len(values) else float(values.quantile(share))


def _share(values: Tensor, tau: float) -> float:
    return float((values <= tau).double().mean())
