"""The running vector of a macrobatch: one tensor a parameter, folded in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

Gradient = list[Tensor | None]
"""One tensor a parameter, None where the parameter is unused; empty where there is none."""


@final
class RunningVector:
    """Holds s while gradients are folded in as `s = keep * s + add * g`.

    The first gradient is taken over, not copied, so that a macrobatch costs the memory of two
    gradients: s and the newest one.
    """

    def __init__(self):
        self.tensors: Gradient = []

    def fold(self, gradient: Gradient, keep: float, add: float) -> None:
        """Fold one gradient in.

        Args:
            gradient: One tensor a parameter, None where the parameter is unused.
            keep: Factor of s.
            add: Factor of the gradient.
        """
        if not self.tensors:
            self.tensors = list(gradient)
            self.scale(add)
            return
        self.scale(keep)
        both = [i for i, g in enumerate(gradient) if g is not None and self.tensors[i] is not None]
        if both:  # torch refuses an empty list
            mine = _present([self.tensors[i] for i in both])
            theirs = _present([gradient[i] for i in both])
            torch._foreach_add_(mine, theirs, alpha=add)  # pyright: ignore[reportPrivateImportUsage]
        for i, g in enumerate(gradient):
            if g is not None and self.tensors[i] is None:
                self.tensors[i] = g * add

    def scale(self, factor: float) -> None:
        """Multiply s by a number."""
        tensors = _present(self.tensors)
        if factor != 1.0 and tensors:
            torch._foreach_mul_(tensors, factor)  # pyright: ignore[reportPrivateImportUsage]

    def divide(self, divisor: int) -> None:
        """Divide s by a number of gradients."""
        tensors = _present(self.tensors)
        if divisor != 1 and tensors:
            torch._foreach_div_(tensors, float(divisor))  # pyright: ignore[reportPrivateImportUsage]


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]
