"""Any other call: its own vector-Jacobian product, vectorised over the rows by torch.func."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.utils import _pytree as pytree

from gafscope.gradients.ghost.calls.use import Maker, Use, unchanged
from gafscope.gradients.ghost.pieces import Piece, Rows
from gafscope.gradients.ghost.places import Unsupported
from gafscope.gradients.ghost.trace import tensors_in

_Pull = Callable[[list[Tensor], list[Tensor]], tuple[Tensor, ...]]


def generic(use: Use) -> Maker:
    """Handle a call of which nothing is known but that it treats the samples alike."""
    leaves, structure = pytree.tree_flatten((use.args, use.kwargs))
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    keyed = {i: key for i in tensors if (key := use.key(leaves[i]))}
    fed = {i: use.place(leaves[i]) for i in tensors if use.place(leaves[i]) is not None}
    kept = [unchanged(leaves[i]) for i in fed]
    parameters = [leaves[i].detach() for i in keyed]
    empty = [torch.zeros_like(output) for output in use.outputs if len(use.outputs) > 1]
    func, choose = use.func, _differentiable_outputs(use)
    for i in (*keyed, *fed):
        leaves[i] = None

    def rows_of(inputs: list[Tensor], gradients: list[Tensor]) -> tuple[Tensor, ...]:
        def call(*parameters: Tensor) -> tuple[Tensor, ...]:
            given = list(leaves)
            for i, value in zip((*fed, *keyed), (*inputs, *parameters), strict=True):
                given[i] = value
            args, kwargs = pytree.tree_unflatten(given, structure)
            return choose(func(*args, **kwargs))

        found = vjp(call, *parameters)
        return found[1](tuple(gradients))

    def make(gradients: list[Tensor | None]) -> list[tuple[str, Piece]]:
        if all(gradient is None for gradient in gradients):
            return []
        filled = [empty[j] if g is None else g for j, g in enumerate(gradients)]
        try:
            with warnings.catch_warnings(), torch.enable_grad():
                # An operation that vmap has to run row by row is slow, but right.
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                rows = _vectorised(use, rows_of, [give() for give in kept], [*fed.values()], filled)
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise Unsupported(f"'{use.call.name}' cannot be vectorised ({reason})") from error
        return [(key, Rows(row)) for key, row in zip(keyed.values(), rows, strict=True)]

    return make


def _differentiable_outputs(use: Use) -> Callable[[Any], tuple[Tensor, ...]]:
    """Tell which outputs to differentiate: under vmap they do not tell by themselves."""
    results = tensors_in(use.result)
    wanted = {id(output) for output in use.outputs}
    chosen = [j for j, tensor in enumerate(results) if id(tensor) in wanted]
    return lambda result: tuple(tensors_in(result)[j] for j in chosen)


def _vectorised(
    use: Use, rows_of: _Pull, inputs: list[Tensor], places: list[Any], gradients: list[Tensor]
) -> tuple[Tensor, ...]:
    """Call `rows_of` for all rows at once."""
    if inputs:
        cut = [use.rows_first(value, place) for value, place in zip(inputs, places, strict=True)]
        into = [
            use.rows_first(gradient, place)
            for gradient, place in zip(gradients, use.call.outputs, strict=True)
        ]
        return vmap(rows_of)(cut, into)
    # The samples enter through a size only (`repeat`): take one row's gradients at a time.
    index = torch.arange(use.k, device=gradients[0].device)
    return vmap(lambda row: rows_of([], _only(use, gradients, row)))(index)


def _only(use: Use, gradients: list[Tensor], row: Tensor) -> list[Tensor]:
    """Keep the gradients of one row's samples."""
    kept = []
    for gradient, place in zip(gradients, use.call.outputs, strict=True):
        if place is None:
            raise Unsupported(f"'{use.call.name}' has an output without samples")
        size = gradient.shape[place.dim]
        position = torch.arange(size, device=gradient.device)
        sample = position % use.n if place.minor else position // (size // use.n)
        shape = [1] * gradient.ndim
        shape[place.dim] = size
        kept.append(gradient * (sample // (use.n // use.k) == row).view(shape))
    return kept
