"""Geometry of a few gradients: exact inner products and the cosine distances that follow.

Everything here takes and returns plain tensors. A Gramian is the (k, k) float64 matrix
`K[i, j] = <g_i, g_j>` of k gradients; one policy for zero and non-finite rows holds throughout.
"""

from gafscope.geometry.centring import centred_gramian
from gafscope.geometry.cosine import cosine_distance, mean_pairwise_distance, pair_distance
from gafscope.geometry.held import held_gramian
from gafscope.geometry.independence import (
    CovarianceMoments,
    covariance_moments,
    decorrelated,
    effective_dimension,
)
from gafscope.geometry.mahalanobis import (
    check_shrinkage,
    ledoit_wolf_shrinkage,
    mahalanobis_squares,
    span_dimension,
)
from gafscope.geometry.null_cosine import (
    Spectrum,
    check_false_accept,
    null_interval,
    null_quantile,
    null_spectrum,
)
from gafscope.geometry.products import cross_gramian, gramian
from gafscope.geometry.rows import blank_rows, finite_rows, zero_rows
from gafscope.geometry.streaming import StreamingProducts

__all__ = [
    "CovarianceMoments",
    "Spectrum",
    "StreamingProducts",
    "blank_rows",
    "centred_gramian",
    "check_false_accept",
    "check_shrinkage",
    "cosine_distance",
    "covariance_moments",
    "cross_gramian",
    "decorrelated",
    "effective_dimension",
    "finite_rows",
    "gramian",
    "held_gramian",
    "ledoit_wolf_shrinkage",
    "mahalanobis_squares",
    "mean_pairwise_distance",
    "null_interval",
    "null_quantile",
    "null_spectrum",
    "pair_distance",
    "span_dimension",
    "zero_rows",
]
