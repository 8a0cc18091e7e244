"""Where the samples are in a tensor.

Shape legend: n samples make k rows of u samples each; r positions of a dimension may belong to
one sample, e.g. tokens (n, T, d) flattened to (n * T, d), where r = T.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor


class Unsupported(Exception):
    """The ghost engine cannot take this model exactly; the message says why."""


@final
@dataclass(frozen=True)
class Place:
    """The dimension of a tensor that holds the samples.

    Attributes:
        dim: The dimension.
        merged: More than one position belongs to a sample.
        minor: Where merged: the samples vary fastest, (r, n) rather than (n, r).
    """

    dim: int
    merged: bool = False
    minor: bool = False

    def rows_first(self, tensor: Tensor, n: int, k: int) -> Tensor:
        """Bring the rows to the front.

        Args:
            tensor: (..., n * r, ...).
            n: Number of samples.
            k: Number of rows.

        Returns:
            (k, ..., u * r, ...), a view where the strides allow it.

        Raises:
            Unsupported: If the dimension does not hold n samples.
        """
        size = tensor.shape[self.dim]
        if size % n or (size != n and not self.merged):
            raise Unsupported(f"a dimension of {size} positions does not hold {n} samples")
        if not self.minor:
            return tensor.unflatten(self.dim, (k, size // k)).movedim(self.dim, 0)
        parts = tensor.unflatten(self.dim, (size // n, k, n // k)).movedim(self.dim + 1, 0)
        return parts.flatten(self.dim + 1, self.dim + 2)

    def turned(self) -> Place:
        """Give the same place with the samples varying fastest."""
        return replace(self, minor=True)


def place_of(two: tuple[int, ...], three: tuple[int, ...]) -> Place | None:
    """Find the sample dimension from a tensor's shapes with 2 and with 3 samples.

    Args:
        two: Its shape in a forward pass of 2 samples.
        three: Its shape in the same pass of 3 samples.

    Returns:
        The place; None where the shape does not depend on the number of samples.

    Raises:
        Unsupported: If it depends on it in another way, e.g. (n, n).
    """
    if len(two) != len(three):
        raise Unsupported("the number of a tensor's dimensions changes with the batch size")
    grown = [dim for dim, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if not grown:
        return None
    a, b = two[grown[0]], three[grown[0]]
    if len(grown) > 1 or 3 * a != 2 * b:
        raise Unsupported(
            f"a tensor has shape {two} with 2 samples and {three} with 3, so that no single "
            "dimension holds the samples"
        )
    return Place(grown[0], merged=a != 2)
