"""Symmetric label noise: a share of the labels moves to another class, each equally likely."""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric_noise(
    labels: Tensor, share: float, num_classes: int, generator: torch.Generator
) -> Tensor:
    """Move exactly round(share * n) labels to a different class, drawn uniformly.

    One generator state gives nested noise: what a small share moves, a larger one moves to the
    same place, so that runs at different shares can be compared pair by pair.

    Args:
        labels: (n,) int64 labels in 0 .. num_classes - 1.
        share: How many to move, in [0, 1).
        num_classes: How many classes there are, at least 2.
        generator: Draws which labels move and where to.

    Returns:
        (n,) int64, the noisy labels; `labels` is not changed.

    Source:
        The noise that Gradient Agreement Filtering (arXiv 2412.18052) is studied under.

    Example:
        >>> clean = torch.zeros(10, dtype=torch.int64)
        >>> noisy = symmetric_noise(clean, 0.3, 5, torch.Generator().manual_seed(0))
        >>> int((noisy != clean).sum())
        3
    """
    assert num_classes >= 2
    order = torch.randperm(len(labels), generator=generator)
    shifts = torch.randint(1, num_classes, (len(labels),), generator=generator)
    moved = order[: round(share * len(labels))]
    noisy = labels.clone()
    noisy[moved] = (labels[moved] + shifts[moved]) % num_classes
    return noisy
