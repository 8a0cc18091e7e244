"""The Gramian of gradients less their mean."""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor


def centred_gramian(matrix_kk: Float64[Tensor, "k k"]) -> Float64[Tensor, "k k"]:
    """Give the inner products of `x_i = g_i - mean of all g`.

    `<x_i, x_j> = K[i, j] - mean_j K[i, :] - mean_i K[:, j] + mean K`, made symmetric and with a
    diagonal that rounding cannot turn negative.

    Args:
        matrix_kk: Gramian of finite rows, (k, k) float64.

    Returns:
        (k, k) float64.

    Example:
        >>> import torch
        >>> centred_gramian(torch.tensor([[0.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
        tensor([[ 1., -1.],
                [-1.,  1.]], dtype=torch.float64)
    """
    if not len(matrix_kk):
        return matrix_kk
    means = matrix_kk.mean(0)
    centred = matrix_kk - means[:, None] - means[None, :] + means.mean()
    centred = (centred + centred.T) / 2
    centred.diagonal().clamp_(min=0.0)
    return centred
