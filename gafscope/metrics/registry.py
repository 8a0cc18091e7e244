"""All metrics by name, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, final

from gafscope.errors import UserError
from gafscope.gradients import GradientRows
from gafscope.metrics.confusion import confusion
from gafscope.metrics.distance_quantile import distance_quantile
from gafscope.metrics.effective_dimension import effective_dimension
from gafscope.metrics.estimate import Estimate
from gafscope.metrics.fraction_opposed import fraction_opposed
from gafscope.metrics.gradient_diversity import gradient_diversity
from gafscope.metrics.gradient_norm_spread import gradient_norm_spread
from gafscope.metrics.gsnr import gsnr
from gafscope.metrics.l2_distance import l2_distance
from gafscope.metrics.m_coherence import m_coherence
from gafscope.metrics.mahalanobis_distance import mahalanobis_distance
from gafscope.metrics.mean_distance import mean_distance
from gafscope.metrics.noise_scale import check_microbatch_size, noise_scale
from gafscope.metrics.norm_test import norm_test
from gafscope.metrics.sign_agreement import majority_sign, unanimous_sign
from gafscope.metrics.source import Source, layer_names
from gafscope.metrics.spectrum import outlier_directions

if TYPE_CHECKING:
    import pandas as pd
from gafscope.metrics.stiffness import cosine_stiffness, sign_stiffness


@final
@dataclass(frozen=True)
class Metric:
    """A metric and what a reader should know of it.

    Attributes:
        name: What it is called in tables.
        function: `function(source, layer=None) -> Estimate`.
        meaning: One line.
        range: Its range and unit.
        source: Where it comes from.
        needs_rows: Whether a Gramian is not enough.
        in_samples: Whether `function` also takes `microbatch_size`.
    """

    name: str
    function: Callable[..., Estimate]
    meaning: str
    range: str
    source: str
    needs_rows: bool = False
    in_samples: bool = False


def _quantile(q: float) -> Callable[..., Estimate]:
    return partial(distance_quantile, q=q)


_GAF = "arXiv 2412.18052"
_ALL = (
    Metric("mean_distance", mean_distance, "mean cosine distance of two rows", "[0, 2]", _GAF),
    Metric("distance_q05", _quantile(0.05), "5% quantile of the distance", "[0, 2]", _GAF),
    Metric("distance_median", _quantile(0.5), "median distance", "[0, 2]", _GAF),
    Metric("distance_q95", _quantile(0.95), "95% quantile of the distance", "[0, 2]", _GAF),
    Metric(
        "fraction_opposed",
        fraction_opposed,
        "share of pairs with a negative inner product",
        "[0, 1]",
        "arXiv 2001.06782",
    ),
    Metric(
        "sign_stiffness",
        sign_stiffness,
        "mean sign of the inner product of two rows",
        "[-1, 1]",
        "arXiv 1901.09491",
    ),
    Metric(
        "cosine_stiffness",
        cosine_stiffness,
        "mean cosine of two rows",
        "[-1, 1]",
        "arXiv 1901.09491",
    ),
    Metric(
        "confusion",
        confusion,
        "strongest opposition between two rows",
        "[0, inf), squared gradient",
        "arXiv 1904.06963",
    ),
    Metric(
        "gradient_diversity",
        gradient_diversity,
        "sum of squares over square of the sum",
        "[1/n, inf]",
        "arXiv 1706.05699",
    ),
    Metric(
        "m_coherence",
        m_coherence,
        "how many rows gain from a step along one",
        "[0, n]",
        "arXiv 2008.01217",
    ),
    Metric(
        "norm_test",
        norm_test,
        "variance of the mean gradient over its square",
        "[0, inf]",
        "Byrd et al. 2012; arXiv 1606.04838",
    ),
    Metric(
        "noise_scale",
        noise_scale,
        "batch size at which noise equals signal",
        "[0, inf), samples",
        "arXiv 1812.06162",
        in_samples=True,
    ),
    Metric(
        "effective_dimension",
        effective_dimension,
        "number of directions in which rows vary",
        "[1, inf]",
        "Chen and Qin 2010; Himeno and Yamada 2014",
    ),
    Metric(
        "outlier_directions",
        outlier_directions,
        "number of eigenvalues above the random bulk",
        "0, 1, ... (n - 1) / 2",
        "Kritchman and Nadler 2008",
    ),
    Metric("l2_distance", l2_distance, "mean |g_i - g_j|", "[0, inf), gradient", "Euclid"),
    Metric(
        "mahalanobis_distance",
        mahalanobis_distance,
        "mean squared distance to the others, a dimension",
        "[0, inf)",
        "Ledoit and Wolf 2004",
    ),
    Metric(
        "gradient_norm_spread",
        gradient_norm_spread,
        "standard deviation of the norms over their mean",
        "[0, sqrt(n)]",
        "Pearson's coefficient of variation",
    ),
    Metric(
        "gsnr",
        gsnr,
        "mean over coordinates of E[g]^2 / Var[g]",
        "[-1/n, inf)",
        "arXiv 2001.07384",
        needs_rows=True,
    ),
    Metric(
        "unanimous_sign",
        unanimous_sign,
        "share of coordinates with one sign in all rows",
        "[0, 1]",
        "arXiv 2009.00329",
        needs_rows=True,
    ),
    Metric(
        "majority_sign",
        majority_sign,
        "share of coordinates with one sign in most rows",
        "[0, 1]",
        "arXiv 1810.05291",
        needs_rows=True,
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric, by its name in tables."""


def table(source: Source, *, layers: bool = False, microbatch_size: int = 1) -> pd.DataFrame:
    """Measure everything.

    Args:
        source: Gramian or gradients.
        layers: Also measure each layer by itself.
        microbatch_size: Samples averaged in each row, for the noise scale.

    Returns:
        One line a metric and layer: `metric, layer, value, low, high, n, note`; layer "" is the
        whole model. Where a metric cannot be had (too few rows, or a Gramian where it needs the
        gradients) the value is NaN and the note says why.

    Raises:
        UserError: If microbatch_size is below 1, or layers are asked for and not kept.
    """
    check_microbatch_size(microbatch_size)
    names = [None, *_layers_of(source)] if layers else [None]
    gramian = source.gramian(layers=layers) if isinstance(source, GradientRows) else source
    lines = []
    for layer in names:
        for metric in METRICS.values():
            measured = source if metric.needs_rows else gramian
            found = _measured(metric, measured, layer, microbatch_size)
            numbers = {name: getattr(found, name) for name in ("value", "low", "high", "n", "note")}
            lines.append({"metric": metric.name, "layer": layer or "", **numbers})
    import pandas as pd

    return pd.DataFrame(lines)


def by_layer(metric: Callable[..., Estimate], source: Source) -> dict[str, Estimate]:
    """Measure each layer by itself.

    Args:
        metric: A metric, e.g. `mean_distance`.
        source: Gramian that keeps its layers, or gradients.

    Returns:
        Parameter name -> estimate.

    Raises:
        UserError: If the Gramian keeps no layers, or the metric raises one.
    """
    return {layer: metric(source, layer=layer) for layer in _layers_of(source)}


def _layers_of(source: Source) -> tuple[str, ...]:
    names = layer_names(source)
    if not names:
        raise UserError(
            "This Gramian holds no layers, so nothing can be measured layer by layer; compute it "
            "with layers=True."
        )
    return names


def _measured(metric: Metric, source: Source, layer: str | None, microbatch_size: int) -> Estimate:
    samples = {"microbatch_size": microbatch_size} if metric.in_samples else {}
    try:
        return metric.function(source, layer=layer, **samples)
    except UserError as error:
        return Estimate(math.nan, math.nan, math.nan, 0, f"not available: {error}")
