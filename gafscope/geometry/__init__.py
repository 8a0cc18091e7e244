"""Geometry of a few gradients: exact inner products and the cosine distances that follow.

Everything here takes and returns plain tensors. A Gramian is the (k, k) float64 matrix
`K[i, j] = <g_i, g_j>` of k gradients; one policy for zero and non-finite rows holds throughout.
"""

from gafscope.geometry.cosine import cosine_distance, mean_pairwise_distance, pair_distance
from gafscope.geometry.products import cross_gramian, gramian
from gafscope.geometry.rows import blank_rows, finite_rows, zero_rows
from gafscope.geometry.streaming import StreamingProducts

__all__ = [
    "StreamingProducts",
    "blank_rows",
    "cosine_distance",
    "cross_gramian",
    "finite_rows",
    "gramian",
    "mean_pairwise_distance",
    "pair_distance",
    "zero_rows",
]
