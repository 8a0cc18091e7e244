"""The two inner products that a visit needs, <g, g> and <g, s>, in one pass over the memory.

A gradient comes as one tensor a parameter. Small tensors are multiplied in float64. In large ones,
where rounding errors average out, runs of 256 float32 products are summed and the runs added in
float64: a relative error of about 1e-9 at the speed of the memory. The scratch buffers are kept
from call to call, since fresh memory pages would cost more than the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

_RUN = 256
# Blocks that stay in the processor's cache; a GPU wants few large kernels instead.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}
_RANGE = (1e-24, 1e24)
# Smaller tensors are laid end to end first: they cost more in calls than in products.
_SMALL = 1 << 18

_Pair = tuple[Tensor, Tensor | None]


@final
class StreamingProducts:
    """Computes <g, g> and <g, s> for gradients g and running vectors s of one model."""

    def __init__(self):
        self._scratch: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, gradient: Sequence[Tensor | None], running: Sequence[Tensor | None]
    ) -> tuple[float, float]:
        """Multiply a gradient with itself and with the running vector.

        Args:
            gradient: One tensor a parameter; None stands for zeros.
            running: The same for s; empty where there is no s yet.

        Returns:
            `(<g, g>, <g, s>)`, summed in float64.

        Example:
            >>> StreamingProducts()([torch.ones(2), None], [torch.arange(2.0), torch.ones(3)])
            (2.0, 1.0)
        """
        others = running if running else [None] * len(gradient)
        pairs = [
            (g, torch.zeros_like(g) if running and s is None else s)
            for g, s in zip(gradient, others, strict=True)
            if g is not None
        ]
        totals = [self._multiply(g, s) for g, s in _coalesced(pairs)]
        return sum(square for square, _ in totals), sum(dot for _, dot in totals)

    def _multiply(self, g_n: Tensor, s_n: Tensor | None) -> tuple[float, float]:
        if g_n.numel() > _SMALL and g_n.dtype != torch.float64:
            square, dot = self._multiply_in_runs(g_n, s_n)
            # Products of float32 numbers vanish or overflow long before float64 ones.
            if _RANGE[0] <= square <= _RANGE[1]:
                return square, dot
        wide = g_n.double()
        dot = 0.0 if s_n is None else torch.dot(wide, s_n.double()).item()
        return torch.dot(wide, wide).item(), dot

    def _multiply_in_runs(self, g_n: Tensor, s_n: Tensor | None) -> tuple[float, float]:
        products, sums = self._buffers(g_n)
        squares, dots = [], []
        for start in range(0, g_n.numel(), len(products)):
            g = g_n[start : start + len(products)].float()
            squares.append(_sum(torch.mul(g, g, out=products[: len(g)]), sums))
            if s_n is not None:
                s = s_n[start : start + len(products)].float()
                dots.append(_sum(torch.mul(g, s, out=products[: len(g)]), sums))
        dot = torch.stack(dots).sum().item() if dots else 0.0
        return torch.stack(squares).sum().item(), dot

    def _buffers(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        device = tensor.device
        if device not in self._scratch:
            size = _BLOCK.get(device.type, _BLOCK["cuda"])
            self._scratch[device] = (
                torch.empty(size, device=device),
                torch.empty(size // _RUN, device=device),
            )
        return self._scratch[device]


def _sum(products: Tensor, sums: Tensor) -> Tensor:
    """Sum in runs, then in float64."""
    whole = products.numel() // _RUN * _RUN
    runs = torch.sum(products[:whole].view(-1, _RUN), 1, out=sums[: whole // _RUN])
    total = runs.sum(dtype=torch.float64)
    if whole == products.numel():
        return total
    return total + products[whole:].sum(dtype=torch.float64)


def _coalesced(pairs: Sequence[_Pair]) -> Iterator[_Pair]:
    """Flatten the pairs and lay the small ones end to end, by device."""
    small: dict[torch.device, list[_Pair]] = {}
    for g, s in pairs:
        flat = _flat_pair(g, g if s is None else s)
        pair = flat[0], None if s is None else flat[1]
        if g.numel() > _SMALL:
            yield pair
        else:
            small.setdefault(g.device, []).append(pair)
    for group in small.values():
        running = [s for _, s in group if s is not None]
        yield torch.cat([g for g, _ in group]), torch.cat(running) if running else None


def _flat_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten both in one order, without a copy where channels-last memory allows."""
    if a.ndim == 4 and not a.is_contiguous() and a.stride() == b.stride():
        return a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1)
    return a.reshape(-1), b.reshape(-1)
