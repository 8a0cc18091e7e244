"""Agreement metrics: `metric(gramian_or_gradients, layer=None) -> Estimate(value, low, high, n)`.

One metric a file. Smooth metrics carry a 95% interval by the delete-one jackknife over rows
(`gafscope.metrics.resampling`); extremes, quantiles and counts carry none. Rows that are not finite
are left out and counted in the estimate's note. `METRICS` lists them, `table` measures them all.
"""

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
from gafscope.metrics.noise_scale import noise_scale
from gafscope.metrics.norm_test import norm_test
from gafscope.metrics.registry import METRICS, Metric, by_layer, table
from gafscope.metrics.sign_agreement import majority_sign, unanimous_sign
from gafscope.metrics.spectrum import Spectrum, outlier_directions, spectrum
from gafscope.metrics.stiffness import cosine_stiffness, sign_stiffness, stiffness_by_class

__all__ = [
    "METRICS",
    "Estimate",
    "Metric",
    "Spectrum",
    "by_layer",
    "confusion",
    "cosine_stiffness",
    "distance_quantile",
    "effective_dimension",
    "fraction_opposed",
    "gradient_diversity",
    "gradient_norm_spread",
    "gsnr",
    "l2_distance",
    "m_coherence",
    "mahalanobis_distance",
    "majority_sign",
    "mean_distance",
    "noise_scale",
    "norm_test",
    "outlier_directions",
    "sign_stiffness",
    "spectrum",
    "stiffness_by_class",
    "table",
    "unanimous_sign",
]
