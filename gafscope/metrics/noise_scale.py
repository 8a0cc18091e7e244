"""The noise scale B_simple: the batch size at which noise and signal are equally strong."""

from __future__ import annotations

import math

from gafscope.errors import UserError
from gafscope.metrics.estimate import Estimate
from gafscope.metrics.resampling import interval, join_notes, without_interval
from gafscope.metrics.signal import signal_share
from gafscope.metrics.source import Source, finite_gramian


def noise_scale(source: Source, microbatch_size: int = 1, *, layer: str | None = None) -> Estimate:
    """Estimate `B_simple = tr(Sigma) / |mu|^2` in samples (arXiv 1812.06162, equation 2.9).

    With u samples a row, tr(Sigma) of one sample is u times that of the rows, so
    `B_simple = u (D - M) / M`, M the mean off-diagonal and D the mean diagonal entry of the
    Gramian: |mu|^2 and tr(Sigma) without bias, as in the paper's appendix A.1 with B_small = u and
    B_big = n u. The ratio of the two is biased by a relative O(1 / n).

    The interval is that of M / D by the delete-one jackknife, mapped; it covers 93-97% from n = 16
    on where B_simple is below about 5 u, and more above. Where it includes M <= 0 the rows cannot
    tell the noise scale from infinity: the value is NaN and the note says so.

    Args:
        source: Gramian or gradients, at least 3 finite rows.
        microbatch_size: u, samples averaged in each row.
        layer: A parameter's name, or None for the whole model.

    Returns:
        Samples, at least 0. Batches much smaller are mostly noise; much larger ones waste samples.

    Raises:
        UserError: If u is below 1, there is no such layer, or there are too few rows.

    Example:
        >>> import torch
        >>> from gafscope.gradients import GradientRows
        >>> rows = 1 + torch.randn(32, 50, generator=torch.Generator().manual_seed(0))
        >>> noise_scale(GradientRows({"w": rows}), microbatch_size=20)
        19.388 [16.839, 22.316] (n=32)
    """
    check_microbatch_size(microbatch_size)
    matrix, note = finite_gramian(source, layer, "noise_scale", 3)
    n, share = len(matrix), signal_share(matrix)
    low, high = interval(share)
    # NaN (all rows zero) compares False and is refused as well.
    if not low > 0:
        why = (
            f"cannot know: the 95% interval of |mu|^2 / E|g|^2, [{low:.3g}, {high:.3g}], does not "
            "exclude 0; use more or larger microbatches"
        )
        return without_interval(math.nan, n, join_notes(note, why))

    def samples(rho: float) -> float:
        return microbatch_size * max(1 / rho - 1, 0.0)

    return Estimate(samples(float(share.value)), samples(high), samples(low), n, note)


def check_microbatch_size(microbatch_size: int) -> None:
    """Refuse a number of samples a row that is none.

    Args:
        microbatch_size: Samples averaged in each row.

    Raises:
        UserError: If it is below 1.
    """
    if not microbatch_size >= 1:
        raise UserError(
            "microbatch_size is the number of samples averaged in each row and must be at least "
            f"1, but it is {microbatch_size}."
        )
