"""Each backward's own gradient, by hooks on the parameters.

A tensor hook sees the gradient of one backward before it is added to `.grad`, summed over all uses
of the parameter. It also fires under `autograd.grad`, which is no training; what follows the
accumulation into `.grad` does not, and tells the two apart. A callback that autograd runs at the
end of a backward says when the row is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from gafscope.errors import UserError

Row: TypeAlias = list[Tensor | None]
"""One micro-gradient: a tensor a parameter, None where the backward did not reach it."""


@final
class Capture:
    """Watches the parameters for as long as it is open.

    Args:
        parameters: The parameters by name.
        begins: Called when a backward reaches its first parameter, before anything is added.
        ends: Called with the row when a training backward is over. Its tensors belong to the
            receiver; none shares memory with `.grad`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        begins: Callable[[], None],
        ends: Callable[[Row], None],
    ):
        self.parameters = dict(parameters)
        self._begins, self._ends = begins, ends
        self._task = -1
        # What the tensor hooks saw; what of it was then added to `.grad`.
        self._seen: dict[int, Tensor] = {}
        self._row: dict[int, Tensor] = {}
        self._handles: list[Any] = []
        for i, parameter in enumerate(self.parameters.values()):
            self._handles.append(parameter.register_hook(partial(self._see, i)))
            after = partial(self._accumulated, i)
            self._handles.append(parameter.register_post_accumulate_grad_hook(after))

    def close(self) -> None:
        """Take all hooks away again; a parameter that had none is as if it never had any."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for parameter in self.parameters.values():
            if not parameter._backward_hooks:
                parameter._backward_hooks = None
            if not parameter._post_accumulate_grad_hooks:  # pyright: ignore[reportAttributeAccessIssue]
                parameter._post_accumulate_grad_hooks = None  # pyright: ignore[reportAttributeAccessIssue]
        self._clear()

    def _see(self, i: int, gradient: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task:
            # What a backward that failed half-way left behind is dropped here.
            self._clear()
            self._task = task
            self._begins()
            engine: Any = Variable._execution_engine
            engine.queue_callback(partial(self._over, task))
        if gradient.layout != torch.strided:
            raise _sparse(list(self.parameters)[i])
        # This very tensor, not a view of it: as long as somebody holds it, autograd copies it
        # into `.grad` instead of adding later gradients to it.
        self._seen[i] = gradient

    def _accumulated(self, i: int, parameter: Tensor) -> None:
        if i in self._seen:
            self._row[i] = self._seen.pop(i)

    def _over(self, task: int) -> None:
        if task != self._task:
            return
        if torch._C._current_autograd_node() is not None:
            raise UserError(
                "A backward inside another one (activation checkpointing with use_reentrant=True) "
                "spreads the gradient of one microbatch over several backwards, which cannot be "
                "told apart; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        row = [self._row.get(i) for i in range(len(self.parameters))]
        trained = bool(self._row)
        self._clear()
        if trained:
            self._ends([None if part is None else part.detach() for part in row])

    def _clear(self) -> None:
        self._task = -1
        self._seen, self._row = {}, {}


def holds_gradient(parameters: Sequence[nn.Parameter]) -> bool:
    """Tell whether anything is in `.grad`.

    Args:
        parameters: The parameters; the first one that holds a number ends the search.

    Returns:
        False where every `.grad` is None or all zeros, as after `zero_grad`.
    """
    return any(p.grad is not None and bool(p.grad.any()) for p in parameters)


def _sparse(name: str) -> UserError:
    return UserError(
        f"The parameter '{name}' has sparse gradients, whose inner products are not computed; "
        "make its layer with sparse=False."
    )
