"""Inner products in the wished precision, summed in float64 block by block.

Shape legend: k rows, L numbers each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import final

import torch
from torch import Tensor

# Products that are added up in float32 before float64 takes over. Matrix products of the BLAS
# add up in blocks of their own, so that longer runs lose little, and short ones lose speed.
_RUN = 1 << 14
# From this many rows on, strips of the upper triangle are faster than the whole matrix; narrower
# strips than this are not.
_STRIPS_FROM = 64
_STRIP = 32
# Rows so short are not worth several products.
_SHORT = 1 << 10

PRECISIONS = ("float32", "float64", "bf16")


@final
@dataclass(frozen=True)
class Products:
    """How inner products are computed.

    Attributes:
        precision: "float32": relative errors near 1e-7. "float64": factors are widened first.
            "bf16": off-diagonal products of factors rounded to bfloat16, relative errors of
            some 1e-3; squared norms stay in float32.
        workspace: Bytes that a temporary block of rows takes; more would leave the cache.
        held: Bytes that whole rows and pixel Gramians may take, where that is fastest.
    """

    precision: str = "float32"
    workspace: int = 2 << 20
    held: int = 64 << 20
    _memory: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """Relative errors that the precision explains, of products in bf16; else far smaller."""
        return 3e-2 if self.precision == "bf16" else 0.0

    @classmethod
    def within(cls, precision: str, spare: int | None) -> Products:
        """Make products that use no more memory than there is.

        Args:
            precision: As above.
            spare: Bytes; None for no limit.
        """
        if spare is None:
            return cls(precision)
        return cls(precision, min(cls.workspace, spare), min(cls.held, spare))

    def scratch(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Give memory for a temporary block, the same at every call.

        Fresh memory would have to be handed out by the system page by page.

        Args:
            shape: The block's shape.
            like: A tensor of its type, on its device.

        Returns:
            The block, with whatever was left in it.
        """
        size = prod(shape)
        memory = self._memory.get(like.dtype)
        if memory is None or memory.numel() < size or memory.device != like.device:
            memory = self._memory[like.dtype] = like.new_empty(size)
        return memory[:size].view(shape)

    def sums(self, dtype: torch.dtype) -> torch.dtype:
        """Give the type of factors: never a half one, whose sums would be coarse."""
        return torch.promote_types(dtype, torch.float64 if self._fine else torch.float32)

    @property
    def _fine(self) -> bool:
        return self.precision == "float64"

    def prepared(self, factor: Tensor) -> Tensor:
        """Give a factor in the type in which it is multiplied."""
        return factor.bfloat16() if self.precision == "bf16" else factor

    def gram(self, rows: Tensor) -> Tensor:
        """Multiply all pairs of rows.

        Args:
            rows: (k, L).

        Returns:
            (k, k) float64.
        """
        k, length = rows.shape
        total = torch.zeros(k, k, dtype=torch.float64, device=rows.device)
        strip = k if k < _STRIPS_FROM or length < _SHORT else _STRIP
        for start in range(0, length, _RUN):
            factor = self.prepared(rows[:, start : start + _RUN])
            for i in range(0, k, strip):
                total[i : i + strip, i:] += factor[i : i + strip] @ factor[i:].T
        for i in range(0, k, strip):
            total[i + strip :, i : i + strip] = total[i : i + strip, i + strip :].T
        if self.precision == "bf16":
            total.diagonal().copy_(torch.linalg.vector_norm(rows, dim=1).double() ** 2)
        return total
