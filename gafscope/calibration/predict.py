"""Predict agreement at other microbatch sizes from the Gramian at one.

Shape legend: k micro-gradients, n of them finite; u, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float64
from torch import Tensor

from gafscope.calibration.curve import Bounded, Curve
from gafscope.calibration.microbatches import MINIMUM_ROWS
from gafscope.errors import UserError
from gafscope.geometry import finite_rows
from gafscope.gradients import Gramian

_UNKNOWN = Bounded(math.nan, math.nan, math.nan)


def predict_curve(
    gramian: Gramian,
    microbatch_size: int,
    sizes: Sequence[int] = (5, 10, 20, 50, 100, 200, 400),
    *,
    wanted: float | None = None,
    population: int | None = None,
    balanced: int | None = None,
) -> Curve:
    """Predict the mean cosine of two microbatches of u samples, `E cos = 1 / (1 + B / u)`.

    The micro-gradients must come from disjoint random microbatches. With a the mean of the
    Gramian's products off the diagonal and d that of its diagonal,

        A = a              estimates |mu|^2 without bias,
        S = u (d - a)      estimates tr(Sigma), one sample's variance, without bias,
        B = S / A.

    **Finite population.** Microbatches drawn without replacement from N samples have a noise of
    variance `tr(Sigma) (N - u) / (u (N - 1))`, and two disjoint ones are negatively correlated,
    `-tr(Sigma) / (N - 1)` in sum. Written for fresh samples (S = tr(Sigma) N / (N - 1),
    A = |mu|^2 - S / N) both effects cancel in d - a and in the curve, which is
    `(1 - b / N) / (1 - b / N + b / u)` for b = S / |mu|^2: so it is right for disjoint
    microbatches however large a part of the data they are. Only the critical batch size needs N:
    `noise_scale` is tr(Sigma) / |mu|^2 for the mean over these N samples.

    **Balanced sampling.** Microbatches with equal shares of each class (stratified sampling)
    vary within classes only. S is then the variance within classes, and the prediction holds for
    balanced microbatches, whose size is a multiple of the number of classes.

    The interval is the delete-one jackknife on log B over micro-gradients, as if the data were a
    sample of a larger population. Everything is refused (NaN, with the reason) when the interval
    of |mu|^2 does not lie above 0: agreement cannot then be told from none.

    Args:
        gramian: Of k >= 8 disjoint microbatches.
        microbatch_size: u of these.
        sizes: Sizes to predict for.
        wanted: A mean cosine in (0, 1), to see the size that reaches it.
        population: N, when microbatches are drawn without replacement from so many samples.
        balanced: Number of classes that each microbatch holds equal shares of.

    Returns:
        The curve. Sizes of which no two fit into the population, or that cannot be balanced,
        have NaN. Where the lengths of micro-gradients vary a lot the mean cosine differs from
        this ratio of means; on digits with 40% label noise by less than 0.03.

    Raises:
        UserError: If an argument is out of range, or fewer than 8 micro-gradients are finite.

    Example:
        >>> import torch
        >>> noise = torch.randn(64, 200, generator=torch.Generator().manual_seed(0)).double()
        >>> rows = 1.0 + noise * 2  # one micro-gradient of 10 samples: |mu|^2 200, tr(Sigma) 8000
        >>> curve = predict_curve(Gramian(rows @ rows.T), 10, sizes=(10, 40))
        >>> curve.table.cosine.round(1).tolist()
        [0.2, 0.5]
    """
    finite = finite_rows(gramian.matrix)
    matrix = gramian.matrix.cpu()[finite.cpu()][:, finite.cpu()]
    _check(matrix, microbatch_size, sizes, population, balanced)
    fitted = _fit(matrix, microbatch_size)
    curve = Curve(
        table=_table(fitted.ratio, sizes, population, balanced),
        noise_scale=_noise_scale(fitted.ratio, population, balanced or 1),
        ratio=fitted.ratio,
        microbatch_size=microbatch_size,
        population=population,
        classes=balanced,
        refused=fitted.refused,
        wanted=wanted,
        notes=_notes(population, balanced, len(finite) - len(matrix)),
    )
    if wanted is not None:
        curve.size_for(wanted)  # refuses what is no cosine
    return curve


@final
@dataclass(frozen=True)
class _Fit:
    ratio: Bounded
    refused: str


def _fit(matrix: Float64[Tensor, "n n"], u: int) -> _Fit:
    from scipy.special import stdtrit

    n = len(matrix)
    total, trace, sums, squares = matrix.sum(), matrix.trace(), matrix.sum(1), matrix.diagonal()
    product, ratio = _moments(total, trace, n, u)
    # Without row i: its row and column leave the sum, its square is counted once.
    products, ratios = _moments(total - 2 * sums + squares, trace - squares, n - 1, u)
    t = float(stdtrit(n - 1, 0.975))
    margin = t * _jackknife_error(products)
    if not float(product) - margin > 0 or not bool((ratios > 0).all()):
        interval = Bounded(float(product), float(product) - margin, float(product) + margin)
        reason = (
            f"the squared length of the mean gradient is {interval}, which is not clearly above "
            "0; use more or larger microbatches"
        )
        return _Fit(_UNKNOWN, reason)
    factor = math.exp(t * _jackknife_error(ratios.log()))
    value = float(ratio)
    return _Fit(Bounded(value, value / factor, value * factor), "")


def _moments(total: Tensor, trace: Tensor, n: int, u: int) -> tuple[Tensor, Tensor]:
    """Give A = mean product of two rows, and B = u (mean square - A) / A."""
    product = (total - trace) / (n * (n - 1))
    return product, u * (trace / n - product) / product


def _jackknife_error(values: Tensor) -> float:
    return math.sqrt((len(values) - 1) * float(values.var(correction=0)))


def _table(ratio: Bounded, sizes: Sequence[int], population: int | None, balanced: int | None):
    import pandas as pd

    rows = []
    for u in sizes:
        drawable = u % (balanced or 1) == 0 and (population is None or 2 * u <= population)
        bound = ratio if drawable else _UNKNOWN
        rows.append(
            {
                "u": u,
                "cosine": 1 / (1 + bound.value / u),
                "low": 1 / (1 + bound.high / u),
                "high": 1 / (1 + bound.low / u),
            }
        )
    return pd.DataFrame(rows)


def _noise_scale(ratio: Bounded, population: int | None, strata: int) -> Bounded:
    """Turn B of fresh samples into that of the mean over the population."""
    if population is None:
        return ratio
    share = (population - strata) / population
    parts = (ratio.value, ratio.low, ratio.high)
    return Bounded(*(share * part / (1 + part / population) for part in parts))


def _notes(population: int | None, balanced: int | None, dropped: int) -> tuple[str, ...]:
    notes = []
    if population is not None:
        notes.append(f"For disjoint microbatches of {population} samples without replacement.")
    if balanced is not None:
        notes.append(
            f"For class-balanced microbatches only (multiples of {balanced} samples): the noise "
            "is that within classes."
        )
    if dropped:
        notes.append(f"{dropped} micro-gradients are not finite and left out.")
    return tuple(notes)


def _check(
    matrix: Tensor, u: int, sizes: Sequence[int], population: int | None, balanced: int | None
) -> None:
    if len(matrix) < MINIMUM_ROWS:
        raise UserError(
            f"predict_curve needs at least {MINIMUM_ROWS} finite micro-gradients, but this Gramian "
            f"has {len(matrix)}; use more microbatches."
        )
    if u < 1 or not sizes or min(sizes) < 1:
        raise UserError(
            "microbatch_size and sizes count samples and must be at least 1, but are "
            f"{u} and {list(sizes)}."
        )
    if population is not None and population < len(matrix) * u:
        raise UserError(
            f"The {len(matrix)} microbatches of {u} samples must be disjoint parts of the "
            f"population, but it is given as {population} samples; give the size of the data set."
        )
    if balanced is not None and (balanced < 1 or u % balanced):
        raise UserError(
            "balanced is the number of classes that each microbatch holds equally often, so it "
            f"must divide microbatch_size, but {u} is no multiple of {balanced}; leave it out for "
            "microbatches drawn at random."
        )
