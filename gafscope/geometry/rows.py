"""The policy for gradients that are zero or not finite, read off the Gramian's diagonal.

A zero row has no direction: it is at distance 1 from everything, itself included.
A row with a NaN or an infinity has no distance at all (NaN) and no rule ever accepts it.
"""

from __future__ import annotations

import math

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


def blank_rows(matrix_kk: Float64[Tensor, "k k"]) -> Float64[Tensor, "k k"]:
    """Write NaN wherever a gradient that is not finite takes part.

    A product with such a gradient may happen to be infinite, NaN or (with a zero) either; this
    makes them all alike.

    Args:
        matrix_kk: Gramian, (k, k).

    Returns:
        (k, k), NaN in the rows and columns of the gradients that are not finite.
    """
    finite = finite_rows(matrix_kk)
    return torch.where(finite[:, None] & finite[None, :], matrix_kk, math.nan)
