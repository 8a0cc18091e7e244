"""Collects what the calls contribute, and turns it into Gramians and weighted gradients.

A parameter's Gramian is computed as soon as its last contribution has arrived, in the middle of
the backward pass, so that the factors can be freed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from gafscope import geometry
from gafscope.gradients.ghost.derived import are_parts, origins, pull, pull_rows
from gafscope.gradients.ghost.forms import gram_of, sum_of_rows
from gafscope.gradients.ghost.pieces import Piece
from gafscope.gradients.ghost.plan import Call, is_derived
from gafscope.gradients.ghost.products import Products


@final
class Ledger:
    """The contributions to every parameter, and to what is derived from parameters.

    Args:
        parameters: The trainable parameters.
        calls: The plan.
        k: Number of rows.
        products: How to multiply.
        keep: Keep the factors for `combine`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        calls: tuple[Call, ...],
        k: int,
        products: Products,
        keep: bool,
    ):
        self._parameters, self._k, self._products, self._keep = parameters, k, products, keep
        self._awaited = Counter(
            key for call in calls if not call.derives for key in call.keys if key is not None
        )
        self._origins = origins(calls)
        self._reparametrised = {name for names in self._origins.values() for name in names}
        self._pieces: dict[str, list[Piece]] = defaultdict(list)
        self._grams: dict[str, Tensor] = {}
        # With coarse products: the Gramian of the first two rows, computed finely.
        self._fine = torch.zeros(2, 2, dtype=torch.float64)
        self._derived: dict[str, Tensor] = {}

    def limit(self, held: int) -> None:
        """Hold no more bytes of whole rows than so many."""
        self._products = replace(self._products, held=min(self._products.held, held))

    def derive(self, key: str, tensor: Tensor) -> None:
        """Enter a derived tensor."""
        self._derived[key] = tensor

    def add(self, key: str, piece: Piece) -> None:
        """Enter a contribution."""
        self._pieces[key].append(piece)
        self._awaited[key] -= 1
        if not self._awaited[key] and key not in self._reparametrised and not is_derived(key):
            self._close(key, self._parameters[key].shape)

    def grams(self) -> dict[str, Tensor]:
        """Give all Gramians, after the backward pass.

        Returns:
            Parameter name -> (k, k) float64.
        """
        for name, parameter in self._parameters.items():
            if name in self._reparametrised:
                self._close_reparametrised(name, parameter)
            elif name not in self._grams:
                # Some of its uses received no gradient.
                self._close(name, parameter.shape)
        # Products of blocks may differ from those of the transposed blocks in the last bit.
        return {n: (self._grams[n] + self._grams[n].T) / 2 for n in self._parameters}

    def error(self) -> float | None:
        """Compare with finer products, after `grams`.

        Returns:
            How far the cosine distance of the first two rows is off; None where products are
            fine already.
        """
        if not self._coarse:
            return None
        both = torch.stack([self._grams[name][:2, :2].cpu() for name in self._parameters]).sum(0)
        exact, found = geometry.cosine_distance(self._fine), geometry.cosine_distance(both)
        return float((found - exact)[0, 1].abs())

    @property
    def _coarse(self) -> bool:
        return self._products.precision == "bf16" and self._k > 1

    def combine(self, weights: Tensor) -> dict[str, Tensor]:
        """Add up rows, `sum_i w_i row_i`; those of weight 0 are left out.

        Args:
            weights: (k,).

        Returns:
            Parameter name -> gradient.
        """
        chosen = weights.nonzero().flatten()
        index = None if len(chosen) == self._k else chosen
        used = weights if index is None else weights[index]
        total: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            total[name] = _sum(self._pieces[name], parameter, index, used)
        for key, tensor in self._derived.items():
            if not self._pieces[key]:
                continue
            gradient = _sum(self._pieces[key], tensor, index, used)
            made_of = {name: self._parameters[name] for name in self._origins[key]}
            for name, pulled in pull(tensor, gradient, made_of).items():
                total[name] = total[name] + pulled
        return total

    def release(self) -> None:
        """Let go of all factors and graphs."""
        self._pieces.clear()
        self._derived.clear()

    def _close(self, key: str, shape: torch.Size) -> None:
        pieces = self._pieces[key]
        if not pieces:
            device = self._parameters[key].device
            self._grams[key] = torch.zeros(self._k, self._k, dtype=torch.float64, device=device)
            return
        self._grams[key], kept = gram_of(pieces, shape, self._k, self._products)
        if self._coarse:
            two: list[Piece] = [piece.first(2) for piece in pieces]
            self._fine += gram_of(two, shape, 2, Products())[0].cpu()
        self._pieces[key] = kept if self._keep else []

    def _close_reparametrised(self, name: str, parameter: nn.Parameter) -> None:
        keys = [key for key, names in self._origins.items() if name in names and self._pieces[key]]
        parts = [self._derived[key] for key in keys]
        if self._pieces[name]:
            parts.append(parameter)
            keys.append(name)
        if are_parts(parameter, parts):
            for key, part in zip(keys, parts, strict=True):
                if key not in self._grams:
                    self._close(key, part.shape)
            empty = torch.zeros(self._k, self._k, dtype=torch.float64, device=parameter.device)
            self._grams[name] = sum((self._grams[key] for key in keys), empty)
            return
        dtype = self._products.sums(parameter.dtype)
        rows = torch.zeros(self._k, parameter.numel(), dtype=dtype, device=parameter.device)
        for key, part in zip(keys, parts, strict=True):
            pieces = [piece.to(dtype) for piece in self._pieces[key]]
            own = sum_of_rows(pieces, part.shape).view(self._k, *part.shape)
            if key != name:
                own = pull_rows(part, own, {name: parameter})[name]
            rows += own.reshape(self._k, -1)
        self._grams[name] = self._products.gram(rows)
        if self._coarse:
            self._fine += Products().gram(rows[:2]).cpu()


def _sum(pieces: list[Piece], like: Tensor, index: Tensor | None, weights: Tensor) -> Tensor:
    total = torch.zeros_like(like, requires_grad=False)
    if weights.numel():
        for piece in pieces:
            total += piece.combine(index, weights).view(like.shape)
    return total
