"""Inner products in the wished precision, summed in float64 block by block.

Shape legend: k rows, L numbers each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

# Products that are added up in float32 before float64 takes over. Matrix products of the BLAS
# add up in blocks of their own, so that longer runs lose little, and short ones lose speed.
_RUN = 1 << 15
# From this many rows on, half of the matrix is worth computing as three quarters.
_HALVES_FROM = 96

PRECISIONS = ("float32", "float64", "bf16")


@final
@dataclass(frozen=True)
class Products:
    """How inner products are computed.

    Attributes:
        precision: "float32": relative errors near 1e-7. "float64": factors are widened first.
            "bf16": off-diagonal products of factors rounded to bfloat16, relative errors of
            some 1e-3; squared norms stay in float32.
        workspace: Bytes that temporary blocks may take.
    """

    precision: str = "float32"
    workspace: int = 16 << 20

    def prepared(self, factor: Tensor) -> Tensor:
        """Give a factor in the type in which it is multiplied."""
        if self.precision == "float64":
            return factor.double()
        if self.precision == "bf16":
            return factor.bfloat16()
        return factor.float() if factor.dtype in (torch.bfloat16, torch.float16) else factor

    def gram(self, rows: Tensor) -> Tensor:
        """Multiply all pairs of rows.

        Args:
            rows: (k, L).

        Returns:
            (k, k) float64.
        """
        k, length = rows.shape
        total = torch.zeros(k, k, dtype=torch.float64, device=rows.device)
        for start in range(0, length, _RUN):
            part = rows[:, start : start + _RUN]
            factor = self.prepared(part)
            if k < _HALVES_FROM:
                total += factor @ factor.T
            else:
                half = k // 2
                top, bottom = factor[:half], factor[half:]
                total[:half, :half] += top @ top.T
                total[half:, half:] += bottom @ bottom.T
                cross = top @ bottom.T
                total[:half, half:] += cross
                total[half:, :half] += cross.T
        if self.precision == "bf16":
            total.diagonal().copy_(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32) ** 2)
        return total
