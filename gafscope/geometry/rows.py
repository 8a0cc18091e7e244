"""The policy for gradients that are zero or not finite, read off the Gramian's diagonal.

A zero row has no direction: it is at distance 1 from everything, itself included.
A row with a NaN or an infinity has no distance at all (NaN) and no rule ever accepts it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64
from torch import Tensor


def finite_rows(matrix_kk: Float64[Tensor, "k k"]) -> Bool[Tensor, " k"]:
    """Tell which gradients are finite.

    Args:
        matrix_kk: Gramian, (k, k).

    Returns:
        (k,), True where `K[i, i]` is a finite number.
    """
    return torch.isfinite(matrix_kk.diagonal())


def zero_rows(matrix_kk: Float64[Tensor, "k k"]) -> Bool[Tensor, " k"]:
    """Tell which gradients are exactly zero.

    Args:
        matrix_kk: Gramian, (k, k).

    Returns:
        (k,), True where `K[i, i]` is 0.
    """
    return matrix_kk.diagonal() == 0
