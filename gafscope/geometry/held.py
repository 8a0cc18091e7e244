"""The Gramian of k gradients that are held as they came, one tensor a parameter.

Nothing is laid end to end but blocks that stay in the cache. As in `StreamingProducts`, small
tensors are multiplied in float64, and in large ones runs of 256 float32 products are summed and
the runs added in float64: a relative error of about 1e-8 at nearly the speed of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from gafscope.geometry.products import gramian
from gafscope.geometry.rows import blank_rows

_RUN = 256
# Numbers of a block, of all gradients together; a GPU wants few large kernels instead.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}
# Smaller tensors cost more in calls than in products.
_SMALL = 1 << 18
# Products of float32 numbers vanish or overflow long before float64 ones.
_RANGE = (1e-24, 1e24)


def held_gramian(gradients: Sequence[Sequence[Tensor | None]]) -> Float64[Tensor, "k k"]:
    """Multiply every gradient with every gradient, `K[i, j] = <g_i, g_j>`.

    Args:
        gradients: k gradients, each with one tensor a parameter (None stands for zeros); an empty
            one is not finite. At least one tensor must be there.

    Returns:
        (k, k) float64 on the CPU; NaN in the rows and columns of gradients that are not finite.

    Example:
        >>> held_gramian([[torch.tensor([1.0, 2.0]), None], [torch.tensor([0.0, 3.0]), None], []])
        tensor([[5., 6., nan],
                [6., 9., nan],
                [nan, nan, nan]], dtype=torch.float64)
    """
    k = len(gradients)
    there = [i for i, gradient in enumerate(gradients) if gradient]
    total = torch.zeros(len(there), len(there), dtype=torch.float64)
    small: dict[tuple[torch.device, torch.dtype], list[list[Tensor]]] = {}
    for tensors in zip(*(gradients[i] for i in there), strict=True):
        known = next((tensor for tensor in tensors if tensor is not None), None)
        if known is None:
            continue
        rows = _flat([torch.zeros_like(known) if t is None else t.detach() for t in tensors])
        if known.numel() > _SMALL and known.dtype == torch.float32:
            total += _in_runs(rows).cpu()
        else:
            small.setdefault((known.device, known.dtype), []).append(rows)
    for parts in small.values():
        total += gramian(torch.stack([torch.cat(row) for row in zip(*parts, strict=True)])).cpu()
    matrix = torch.full((k, k), math.nan, dtype=torch.float64)
    index = torch.tensor(there, dtype=torch.long)
    matrix[index[:, None], index] = total
    return blank_rows(matrix)


def _in_runs(rows: list[Tensor]) -> Float64[Tensor, "k k"]:
    k, n, device = len(rows), rows[0].numel(), rows[0].device
    size = max(_BLOCK.get(device.type, _BLOCK["cuda"]) // k // _RUN, 1) * _RUN
    total = torch.zeros(k, k, dtype=torch.float64, device=device)
    for start in range(0, n // _RUN * _RUN, size):
        block = [row[start : start + size] for row in rows]
        runs = block[0].numel() // _RUN
        part = torch.stack([row[: runs * _RUN].view(runs, _RUN) for row in block], 1)
        total += torch.bmm(part, part.mT).sum(0, dtype=torch.float64)
    rest = torch.stack([row[n // _RUN * _RUN :] for row in rows]).double()
    total += rest @ rest.T
    squares = total.diagonal()
    if bool(((squares < _RANGE[0]) | ~(squares < _RANGE[1])).any()):
        return gramian(torch.stack(rows))
    return (total + total.T) / 2


def _flat(tensors: list[Tensor]) -> list[Tensor]:
    """Flatten all in one order, without a copy where channels-last memory allows."""
    strides = {tensor.stride() for tensor in tensors}
    if tensors[0].ndim == 4 and len(strides) == 1 and not tensors[0].is_contiguous():
        return [tensor.permute(0, 2, 3, 1).reshape(-1) for tensor in tensors]
    return [tensor.reshape(-1) for tensor in tensors]
