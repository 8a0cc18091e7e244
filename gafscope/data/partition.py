"""Cutting labelled samples into parts that keep the proportions of the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from gafscope.errors import UserError


def stratified_holdout(
    labels: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hold out round(share * n) samples, each class in proportion to its size.

    Class sizes are rounded by largest remainders. Every class keeps at least one sample.

    Args:
        labels: (n,) int64 labels on the CPU.
        share: How much to hold out, above 0 and below 1.
        generator: Draws which samples of a class go.

    Returns:
        Indices of the kept and of the held-out samples, both ascending.

    Raises:
        UserError: The share is so small, or the classes are, that nothing would be held out.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> kept, held = stratified_holdout(labels, 0.5, torch.Generator().manual_seed(0))
        >>> labels[kept].tolist(), labels[held].tolist()
        ([0, 0, 1], [0, 0, 1])
    """
    sizes = torch.bincount(labels)
    exact = sizes.double() * share
    taken = exact.long()
    missing = round(share * len(labels)) - int(taken.sum())
    taken[(taken - exact).argsort(stable=True)[: max(missing, 0)]] += 1
    taken = torch.minimum(taken, (sizes - 1).clamp(min=0))
    if int(taken.sum()) == 0:
        raise UserError(
            f"A share of {share} of {len(labels)} samples in {int((sizes > 0).sum())} classes "
            "holds out none (every class keeps one): raise the share or add samples."
        )
    return _take(labels, taken, generator)


def balanced_subset(
    labels: Tensor, size: int, num_classes: int, generator: torch.Generator
) -> Tensor:
    """Pick `size` samples, equally many of every class.

    Args:
        labels: (n,) int64 labels on the CPU.
        size: How many samples to pick; a multiple of `num_classes`.
        num_classes: How many classes there are.
        generator: Draws which samples of a class are picked.

    Returns:
        (size,) indices, ascending.

    Raises:
        UserError: `size` is no positive multiple of `num_classes`, or a class is too small.
    """
    if size < num_classes or size % num_classes:
        nearest = max(num_classes, round(size / num_classes) * num_classes)
        raise UserError(
            f"subset must be a positive multiple of the number of classes, {num_classes}, "
            f"found {size}: use e.g. {nearest}."
        )
    each = size // num_classes
    sizes = torch.bincount(labels, minlength=num_classes)
    if int(sizes.min()) < each:
        raise UserError(
            f"subset={size} needs {each} samples of each class, but class {int(sizes.argmin())} "
            f"has {int(sizes.min())}: use at most {int(sizes.min()) * num_classes}."
        )
    return _take(labels, torch.full_like(sizes, each), generator)[1]


def _take(labels: Tensor, taken: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Take `taken[c]` random samples of each class c; return the indices left and taken."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, count in enumerate(taken.tolist()):
        members = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[:count]]] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]
