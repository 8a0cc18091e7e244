"""What a handler is told about one call, and what it answers.

Shape legend: n samples make k rows of u samples; a dimension of n * r positions holds the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from gafscope.gradients.ghost.pieces import Piece
from gafscope.gradients.ghost.places import Place, Unsupported
from gafscope.gradients.ghost.plan import Call
from gafscope.gradients.ghost.trace import tensors_in

# From the gradients of a call's outputs (None where none arrived) to what it contributes to each
# parameter or derived tensor, by key.
Maker: TypeAlias = Callable[[list[Tensor | None]], list[tuple[str, Piece]]]


@final
@dataclass(eq=False)
class Use:
    """A call that uses parameters on samples.

    Attributes:
        call: What the plan knows of it.
        func: The function.
        args: Its positional arguments, as they were before the call.
        kwargs: Its named arguments.
        result: What it returned.
        outputs: The differentiable tensors in it.
        n: Number of samples.
        k: Number of rows.
    """

    call: Call
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    outputs: list[Tensor]
    n: int
    k: int

    def release(self) -> None:
        """Let go of all tensors; the places stay known. What a maker needs it keeps itself."""
        self._known  # noqa: B018
        self.args, self.kwargs, self.result, self.outputs = (), {}, None, []

    @cached_property
    def _known(self) -> dict[int, tuple[str | None, Place | None]]:
        tensors = tensors_in((self.args, self.kwargs))
        return {
            id(tensor): (key, place)
            for tensor, key, place in zip(tensors, self.call.keys, self.call.inputs, strict=True)
        }

    def key(self, value: Any) -> str | None:
        """Give the parameter or derived tensor that an argument is; None if it is neither."""
        return self._known[id(value)][0] if isinstance(value, Tensor) else None

    def place(self, value: Any) -> Place | None:
        """Tell where an argument's samples are; None where it has none."""
        return self._known[id(value)][1] if isinstance(value, Tensor) else None

    def bind(self, *names: str) -> list[Any]:
        """Give arguments by their names, in the order of the function's signature."""
        found = list(self.args[: len(names)])
        return found + [self.kwargs.get(name) for name in names[len(found) :]]

    def rows_first(self, tensor: Tensor, place: Place | None) -> Tensor:
        """Bring a tensor's rows to the front, (k, ..., u * r, ...)."""
        assert place is not None
        return place.rows_first(tensor, self.n, self.k)

    def positions(self, tensor: Tensor, place: Place | None) -> Tensor:
        """Lay all dimensions but the last one of each row end to end, (k, T, features)."""
        return self.rows_first(tensor, place).flatten(1, -2)


def unchanged(tensor: Tensor) -> Callable[[], Tensor]:
    """Remember a tensor for the backward pass, and find out if somebody writes to it meanwhile.

    Args:
        tensor: An input of a call.

    Returns:
        A function that gives it, or raises `Unsupported`.
    """
    kept, version = tensor.detach(), 0 if tensor.is_inference() else tensor._version

    def give() -> Tensor:
        if not tensor.is_inference() and kept._version != version:
            raise Unsupported("an input of a layer is overwritten in place before the backward")
        return kept

    return give


def reduced(rows: Tensor, shape: torch.Size) -> Tensor:
    """Add up what a broadcast parameter's gradient adds up, row by row.

    Args:
        rows: (k, *wide), where `shape` broadcasts to `wide`.
        shape: The parameter's shape.

    Returns:
        (k, *shape).
    """
    extra = rows.ndim - 1 - len(shape)
    wide = [*range(1, extra + 1), *(extra + d + 1 for d, size in enumerate(shape) if size == 1)]
    dims = [dim for dim in wide if rows.shape[dim] != 1]
    return (rows.sum(dims) if dims else rows).reshape(len(rows), *shape)
