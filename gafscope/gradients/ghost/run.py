"""One forward and one backward pass that see every use of a parameter.

Hooks on the outputs of such calls receive the gradients; the backward pass is asked for the
gradients of the first such outputs only, so that no weight gradient is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import _pytree as pytree

from gafscope.errors import UserError
from gafscope.gradients.ghost.calls import HANDLERS, Maker, Use, maker_of
from gafscope.gradients.ghost.pieces import Piece
from gafscope.gradients.ghost.places import Unsupported
from gafscope.gradients.ghost.plan import Call, call_name
from gafscope.gradients.ghost.trace import CallTrace, differentiable, tensors_in
from gafscope.gradients.isolation import kept_buffers
from gafscope.gradients.loss import check_differentiable, mean_loss
from gafscope.gradients.problem import Problem

# Functions whose output depends on the parameter's values and another tensor's shape only.
_SHAPE_ONLY = ("expand_as", "view_as", "reshape_as", "type_as")


_HALVES = (torch.bfloat16, torch.float16)


class PathChanged(Unsupported):
    """The forward pass made other calls than the plan says."""


@runtime_checkable
class Contributions(Protocol):
    """Where a pass enters what its calls contribute; a `Ledger`, for one."""

    def derive(self, key: str, tensor: Tensor) -> None:
        """Enter a derived tensor."""

    def add(self, key: str, piece: Piece) -> None:
        """Enter a contribution."""


@final
class Pass(CallTrace):
    """A forward pass whose backward enters every contribution into a ledger.

    Args:
        problem: The measurement.
        calls: The plan.
        n: Number of samples.
        ledger: Where contributions go.
        foreign: The backward pass is somebody else's and frees its graph. Tensors made of
            parameters alone are then made a second time, with a graph of their own, through which
            rows can be pulled back afterwards.
    """

    def __init__(
        self,
        problem: Problem,
        calls: tuple[Call, ...],
        n: int,
        k: int,
        ledger: Contributions,
        foreign: bool = False,
    ):
        super().__init__(problem.parameters)
        self._foreign = foreign
        self._twins: dict[int, Tensor] = {}
        self._problem, self._calls, self._n, self._k = problem, calls, n, k
        self._ledger = ledger
        self._position = 0
        self._listening = False
        self._inputs: dict[int, int] = {}
        self._makers: dict[int, tuple[Maker, list[Tensor | None], int]] = {}
        self._sources: list[GradientEdge] = []
        self.halves = False
        # Of every watched output: its call's index in the plan, its own, its shape and its node.
        self.outputs: list[tuple[int, int, torch.Size, GradientEdge]] = []

    def forward(self, batch: Any) -> Tensor:
        """Run the forward pass.

        Args:
            batch: A pytree of tensors with n samples.

        Returns:
            The losses, (n,).

        Raises:
            PathChanged: If the model made other calls than planned.
            Unsupported: If the loss returns no loss for each sample.
        """
        with kept_buffers(self._problem.model), self:
            losses = self._problem.loss(self._problem.model, batch)
        mean = mean_loss(losses, self._n)
        check_differentiable(mean)
        if not losses.ndim:
            raise Unsupported("the loss returns a mean instead of one number a sample")
        if self._position != len(self._calls):
            raise PathChanged("the model makes other calls than for the first samples")
        return losses

    def backward(self, losses: Tensor, keep_graph: bool = False) -> None:
        """Run the backward pass.

        Args:
            losses: As `forward` gave them.
            keep_graph: Whether another backward pass will follow.
        """
        self.listen()
        total = losses.sum() / (self._n // self._k)
        if self._sources:
            torch.autograd.grad(total, self._sources, allow_unused=True, retain_graph=keep_graph)
        self.finish()

    def listen(self) -> None:
        """Take the gradients that reach the watched outputs from now on.

        For a backward pass that somebody else runs; `finish` must follow it.
        """
        self._listening = True

    def finish(self) -> None:
        """Enter the calls whose outputs did not all receive a gradient, after the backward pass."""
        for index in list(self._makers):
            self._enter(index)

    @property
    def input_bytes(self) -> int:
        """Memory of the inputs of all watched calls, which a plain pass holds as well."""
        return sum(self._inputs.values())

    def release(self) -> None:
        """Let go of the graph: its hooks refer to this object, and do nothing from now on."""
        self._listening = False
        self._sources.clear()
        self._makers.clear()
        self.outputs.clear()
        self.tracked.clear()
        self._twins.clear()

    def see(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Make a call and watch its outputs."""
        given = tensors_in((args, kwargs))
        keys = tuple(self.tracked.get(id(tensor), (None,))[0] for tensor in given)
        name = call_name(func)
        before = args
        if _writes(name) and name not in HANDLERS and isinstance(args[0], Tensor):
            before = (args[0].detach().clone(), *args[1:])
        connected = name not in _SHAPE_ONLY and any(
            tensor.requires_grad for tensor, key in zip(given, keys, strict=True) if key is None
        )
        result = func(*args, **kwargs)
        outputs = differentiable(result)
        if not outputs:
            return result
        if any(tensor.is_complex() for tensor in outputs):
            raise Unsupported(f"'{name}' gives complex numbers")
        for tensor, key in zip(given, keys, strict=True):
            if key is None:
                self._inputs[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        call = self._next(name, keys, len(outputs))
        if call.derives:
            twins = outputs
            if self._foreign:
                twin_args, twin_kwargs = pytree.tree_map(self._twin, (args, kwargs))
                twins = differentiable(func(*twin_args, **twin_kwargs))
                self._twins |= {id(a): b for a, b in zip(outputs, twins, strict=True)}
            for key, tensor, twin in zip(call.made, outputs, twins, strict=True):
                self.tracked[id(tensor)] = (key, tensor)
                self._ledger.derive(key, twin)
            return result
        use = Use(call, func, before, kwargs, result, outputs, self._n, self._k)
        index = self._position
        try:
            maker = maker_of(use)
        except (TypeError, ValueError, IndexError, AttributeError, AssertionError) as error:
            raise Unsupported(f"'{name}' is called in an unknown way ({error!r})") from error
        self._makers[index] = (maker, [None] * len(outputs), len(outputs))
        use.release()
        self.halves |= any(output.dtype in _HALVES for output in outputs)
        for j, output in enumerate(outputs):
            shape = output.shape
            output = _own_memory(output, given)
            edge = get_gradient_edge(output)
            self.outputs.append((self._position - 1, j, shape, edge))
            if not connected:
                self._sources.append(edge)
            output.register_hook(partial(self._arrived, index, j, shape))
        return result

    def _twin(self, value: Any) -> Any:
        return self._twins.get(id(value), value)

    def _next(self, name: str, keys: tuple[str | None, ...], outputs: int) -> Call:
        if self._position < len(self._calls):
            call = self._calls[self._position]
            self._position += 1
            if (name, keys, outputs) == (call.name, call.keys, len(call.outputs)):
                return call
        if self._foreign:
            raise UserError(
                "The watched model takes another path than at its first call with such samples "
                "(a branch by chance or by the values of its inputs), so their gradients cannot "
                "be told apart; watch it without split and memory='ghost'."
            )
        raise PathChanged("the model makes other calls than for the first samples")

    def _arrived(self, index: int, output: int, shape: torch.Size, gradient: Tensor) -> None:
        # A second pass through somebody's graph finds what the first one has entered.
        if not self._listening or index not in self._makers:
            return
        maker, gradients, missing = self._makers[index]
        gradients[output] = gradient.detach().view(shape)
        self._makers[index] = (maker, gradients, missing - 1)
        if missing == 1:
            self._enter(index)

    def _enter(self, index: int) -> None:
        maker, gradients, _ = self._makers.pop(index)
        for key, piece in maker(gradients):
            self._ledger.add(key, piece)


def _own_memory(output: Tensor, given: list[Tensor]) -> Tensor:
    """Give what an output is a view of, if the call made it.

    `linear` returns a view of its product. Writing to a view takes the view's node out of the
    graph, and a hook on it would wait for ever.
    """
    base = output._base
    if base is None or base.grad_fn is None or any(base is tensor for tensor in given):
        return output
    whole = base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    return base if whole else output


def _writes(name: str) -> bool:
    """Tell whether a function writes to its first argument."""
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
