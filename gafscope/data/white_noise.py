"""White noise with random labels: whatever a model learns from it, it has memorised."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gafscope.data.splits import Dataset, Split
from gafscope.errors import UserError


def white_noise(
    *,
    validation: float,
    seed: int,
    shape: Sequence[int] = (1, 32, 32),
    samples: int = 1000,
    classes: int = 10,
) -> Dataset:
    """Draw pixels from N(0, 1) and labels uniformly, independent of each other.

    Args:
        validation: The validation and the test split hold round(validation * samples) further
            samples each, at least one.
        seed: Decides every number.
        shape: The shape of one input.
        samples: Training samples.
        classes: How many classes there are.

    Returns:
        The data set; no split shares a sample with another.

    Raises:
        UserError: A size that is not positive, or fewer than two classes.

    Source:
        The white-noise study of Gradient Agreement Filtering (arXiv 2412.18052, figure 5).
    """
    shape = tuple(shape)
    for name, value, least in (
        ("samples", samples, 1),
        ("classes", classes, 2),
        ("smallest side of shape", min(shape, default=0), 1),
    ):
        if value < least:
            raise UserError(
                f"The {name} of 'white-noise' must be at least {least}, found {value}: raise it."
            )
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Split:
        inputs = torch.randn(count, *shape, generator=generator)
        labels = torch.randint(classes, (count,), generator=generator)
        return Split(inputs, labels, labels)

    held = max(1, round(validation * samples))
    train, held_out, test = draw(samples), draw(held), draw(held)
    return Dataset("white-noise", train, held_out, test, classes, shape)
