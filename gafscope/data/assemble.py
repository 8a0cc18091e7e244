"""From what a reader found on disk to a data set: subset, validation cut, label noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gafscope.data.noise import symmetric_noise
from gafscope.data.partition import balanced_subset, stratified_holdout
from gafscope.data.splits import Dataset, Split


@final
@dataclass(frozen=True, eq=False)
class Source:
    """Everything a reader knows before any random choice is made.

    Attributes:
        inputs: (n, *shape) training samples, uint8 or float32.
        labels: (n,) int64, their clean labels.
        test_inputs: (m, *shape) test samples.
        test_labels: (m,) int64.
        num_classes: How many classes there are.
        mean: (C,) channel means of uint8 images, or None.
        std: (C,) channel standard deviations, or None.
        human_labels: (n,) int64 noisy labels that people gave, or None.
    """

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    num_classes: int
    mean: Tensor | None = None
    std: Tensor | None = None
    human_labels: Tensor | None = None


def assemble(
    name: str,
    source: Source,
    *,
    label_noise: float,
    validation: float,
    subset: int | None,
    seed: int,
) -> Dataset:
    """Cut a source into splits and put the noise on the training labels.

    The order is subset, validation cut, noise. Only the training split is noisy: the validation
    split keeps its clean labels, so that the control "best validation checkpoint" is as strong as
    it can be. One generator draws all three in this order, so the cut does not depend on the noise.

    Args:
        name: The data set's name.
        source: What the reader found.
        label_noise: Share of training labels to move, in [0, 1).
        validation: Share of the training data to hold out, above 0 and below 1.
        subset: Size of a class-balanced part to use instead of all training data, or None.
        seed: Decides the three choices.

    Returns:
        The data set; its test split depends on none of the arguments but `source`.

    Raises:
        UserError: A subset or a share that does not fit the data, or faulty labels.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = Split(source.inputs, source.labels, source.labels, source.mean, source.std)
    chosen = torch.arange(len(pool))
    if subset is not None:
        chosen = balanced_subset(source.labels, subset, source.num_classes, generator)
    kept, held = stratified_holdout(source.labels[chosen], validation, generator)
    kept, held = chosen[kept], chosen[held]
    clean = source.labels[kept]
    if source.human_labels is not None:
        given = source.human_labels[kept]
    elif label_noise:
        given = symmetric_noise(clean, label_noise, source.num_classes, generator)
    else:
        given = clean
    return Dataset(
        name,
        train=Split(source.inputs[kept], given, clean, source.mean, source.std),
        validation=_clean(source.inputs[held], source.labels[held], source),
        test=_clean(source.test_inputs, source.test_labels, source),
        num_classes=source.num_classes,
        input_shape=tuple(source.inputs.shape[1:]),
    )


def _clean(inputs: Tensor, labels: Tensor, source: Source) -> Split:
    return Split(inputs, labels, labels, source.mean, source.std)
