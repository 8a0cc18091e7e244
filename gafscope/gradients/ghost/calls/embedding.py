"""Tables of vectors: `embedding` and `embedding_bag`."""

from __future__ import annotations

import torch
from torch import Tensor

from gafscope.gradients.ghost.calls.use import Maker, Use
from gafscope.gradients.ghost.pieces import Lookup, Piece
from gafscope.gradients.ghost.places import Place, Unsupported

_MEAN, _MAX = 1, 2


def embedding(use: Use) -> Maker | None:
    """Handle `embedding`: the row of the table is `sum_t e(id_t) b_t^T`."""
    weight, ids, padding, by_frequency = use.bind(
        "weight", "input", "padding_idx", "scale_grad_by_freq"
    )
    place, (out,) = use.place(ids), use.call.outputs
    key = use.key(weight)
    if by_frequency:
        raise Unsupported("scale_grad_by_freq divides by counts over the whole batch")
    if place is None or out is None or not key or place.dim != out.dim:
        return None
    width = weight.shape[0]

    def make(gradients: list[Tensor | None]) -> list[tuple[str, Piece]]:
        (gradient,) = gradients
        if gradient is None:
            return []
        right = use.positions(gradient, out)
        found = use.rows_first(ids, out).flatten(1)
        if padding is not None and padding >= 0:
            right = right.masked_fill((found == padding)[:, :, None], 0.0)
        return [(key, Lookup(found, right, width))]

    return make


def embedding_bag(use: Use) -> Maker | None:
    """Handle `embedding_bag` over bags of one size: a bag's vectors share its gradient."""
    names = (
        "weight", "input", "offsets", "scale_grad_by_freq", "mode", "sparse",
        "per_sample_weights", "include_last_offset", "padding_idx",
    )  # fmt: skip
    weight, ids, offsets, by_frequency, mode, _, scale, last, padding = use.bind(*names)
    key, out = use.key(weight), use.call.outputs[0]
    if by_frequency:
        raise Unsupported("scale_grad_by_freq divides by counts over the whole batch")
    size = len(ids) // max(len(offsets), 1)
    even = torch.equal(offsets, torch.arange(0, len(ids), max(size, 1), device=offsets.device))
    if not even or last or out != Place(0) or not key:
        raise Unsupported("this kind of embedding_bag has no form here")
    if scale is not None and use.key(scale):
        raise Unsupported("per_sample_weights of an embedding_bag are parameters")
    ids = ids.view(-1, size)
    counted = torch.ones_like(ids, dtype=weight.dtype)
    if padding is not None and padding >= 0:
        counted = (ids != padding).to(weight.dtype)
    if mode == _MEAN:
        counted = counted / counted.sum(1, keepdim=True).clamp(min=1)
    if scale is not None:
        counted = counted * scale.detach().view(-1, size)
    shares = counted[:, :, None]
    if mode == _MAX:
        # Each number of the output is that of one vector.
        seen = weight.detach()[ids].masked_fill(counted[:, :, None] == 0, -torch.inf)
        largest = seen.argmax(1, keepdim=True)
        shares = torch.zeros_like(seen).scatter_(1, largest, 1.0) * counted[:, :, None]

    def make(gradients: list[Tensor | None]) -> list[tuple[str, Piece]]:
        gradient = gradients[0]
        if gradient is None:
            return []
        spread = shares * gradient[:, None]
        right = use.positions(spread, out)
        return [(key, Lookup(ids.reshape(use.k, -1), right, weight.shape[0]))]

    return make
