"""The model's calls in somebody's loop, each with the ghost engine's hooks in it.

The engine's own forward and backward are not run: its hooks sit in those of the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gafscope.errors import UserError
from gafscope.gradients.ghost.run import Contributions, Pass
from gafscope.instruments.splitter import Call, Splitter

# Float32 products of hundreds of rows add up to this; a call that was missed is far more.
_TOLERANCE = 1e-3


@runtime_checkable
class Book(Contributions, Protocol):
    """Where the contributions of one call of the model are entered."""

    def limit(self, held: int) -> None:
        """Hold no more bytes of whole rows than so many."""

    def release(self) -> None:
        """Let go of everything."""


_Book = TypeVar("_Book", bound=Book)


@final
class ModelCalls(Generic[_Book]):
    """Watches the calls of a model that a backward may follow.

    Args:
        splitter: Knows the model.
        begin: Gives the pass of a call, and what it enters its contributions in; None where the
            call is not to be watched.
    """

    def __init__(self, splitter: Splitter, begin: Callable[[Call], tuple[Pass, _Book] | None]):
        self._splitter, self._begin = splitter, begin
        self._pass: Pass | None = None
        self._book: _Book | None = None
        self._entered = self._closed = False
        self._number = 0
        model = splitter.model
        self._handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    def close(self) -> None:
        """Take the hooks away and let go of everything."""
        self._closed = True
        for handle in self._handles:
            handle.remove()
        self._release()

    def finish(self) -> _Book:
        """End a backward through the last call.

        Returns:
            What the call contributed.

        Raises:
            UserError: If the model was not called since the last backward.
        """
        if self._pass is None or self._book is None:
            raise UserError(
                f"{self._splitter.asked} watches the call of the model, but a backward came "
                f"without one; call the {type(self._splitter.model).__name__} itself, not only "
                "parts of it, once for each backward."
            )
        self._pass.finish()
        self._pass.release()
        book, self._pass, self._book = self._book, None, None
        return book

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._splitter.looking or not torch.is_grad_enabled():
            return
        self._release()
        self._number += 1
        begun = self._begin(Call(args, kwargs))
        if begun is not None:
            self._pass, self._book = begun
            self._pass.__enter__()
            self._entered = True

    def _leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._splitter.looking or not self._entered:
            return
        assert self._pass is not None and self._book is not None
        self._entered = False
        self._pass.__exit__(None, None, None)
        self._book.limit(self._pass.input_bytes // 4)
        self._pass.listen()
        for tensor in pytree.tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                tensor.register_hook(partial(self._reached, self._number, []))

    def _reached(self, number: int, before: list[None], gradient: Tensor) -> None:
        """Refuse what the hooks inside the model cannot tell apart, before it reaches them."""
        if self._closed:
            return
        if number != self._number:
            raise UserError(
                f"{self._splitter.asked} takes one call of the model before each backward, but "
                f"this backward goes through an earlier call too; {self._splitter.instead}."
            )
        if before:
            raise UserError(
                f"{self._splitter.asked} takes one pass backwards through each call of the model, "
                f"autograd.grad included, but this is the second; {self._splitter.instead}."
            )
        before.append(None)

    def _release(self) -> None:
        if self._pass is not None:
            if self._entered:
                self._entered = False
                self._pass.__exit__(None, None, None)
            self._pass.release()
        if self._book is not None:
            self._book.release()
        self._pass = self._book = None


def differs(found: float, square: float, size: float) -> bool:
    """Compare a squared norm of the loop's own with what rows add up to.

    Args:
        found: What they add up to.
        square: What it is.
        size: What the rows' own squared norms add up to, whose rounding is in it.

    Returns:
        Whether rounding does not explain the difference; False where one is not finite.
    """
    return abs(found - square) > _TOLERANCE * max(size, square)
