"""See every torch function that a forward pass calls with a trainable parameter.

A `TorchFunctionMode` sees the calls of `nn` modules, of functions such as
`F.multi_head_attention_forward` that bypass them, and of hand-written models alike, so that no
model has to be known or rewritten.
"""

from __future__ import annotations

import types
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gafscope.gradients.ghost.recurrent import UNROLLED

# What the override check of a Python function of torch.nn.functional looks up.
_NO_OVERRIDES = {
    name: lambda *_: False
    for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
}


class CallTrace(TorchFunctionMode):
    """Watches calls that involve the parameters, or tensors made of parameters alone.

    Attributes:
        tracked: id -> (key, tensor) of the parameters and of what is derived from them. The
            tensor is held, so that no other takes its id.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        super().__init__()
        self.tracked: dict[int, tuple[str, Tensor]] = {
            id(parameter): (name, parameter) for name, parameter in parameters.items()
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Pass a call on, after looking at it."""
        kwargs = kwargs or {}
        if not (self._involves(args) or (kwargs and self._involves(kwargs.values()))):
            return self.pass_by(func, args, kwargs)
        inner = UNROLLED.get(getattr(func, "__name__", "")) or _without_override_check(func)
        if inner is not None:
            with self:
                return inner(*args, **kwargs)
        return self.see(func, args, kwargs)

    def pass_by(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Make a call without parameters."""
        return func(*args, **kwargs)

    @abstractmethod
    def see(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Make a call with parameters."""

    def _involves(self, values: Iterable[Any]) -> bool:
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self.tracked:
                    return True
            elif isinstance(value, tuple | list) and self._involves(value):
                return True
        return False


class NoDropout(TorchFunctionMode):
    """Runs a model without its dropout, also where that is no module."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Pass a call on, unless it only drops out."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if "dropout" in name:
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention":
            query, key, value, *rest = args
            mask = rest[0] if rest else kwargs.pop("attn_mask", None)
            kwargs = {"is_causal": len(rest) > 2 and rest[2], **kwargs, "dropout_p": 0.0}
            return func(query, key, value, mask, **kwargs)
        inner = _without_override_check(func)
        if inner is not None:
            with self:
                return inner(*args, **kwargs)
        return func(*args, **kwargs)


def tensors_in(value: Any) -> list[Tensor]:
    """List the tensors in nested tuples and lists (and dictionaries), in order.

    Args:
        value: What a function was given, or returned.

    Returns:
        The tensors.
    """
    found: list[Tensor] = []
    _collect(value, found)
    return found


def differentiable(result: Any) -> list[Tensor]:
    """List what a call made that gradients flow through.

    Args:
        result: What it returned.

    Returns:
        The tensors that require a gradient; not leaves, which it can only have handed on.
    """
    return [t for t in tensors_in(result) if t.requires_grad and not t.is_leaf]


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, tuple | list):
        for item in value:
            _collect(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)


@cache
def _without_override_check(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """Copy a Python function of torch.nn.functional such that it runs under a mode.

    Such a function first asks whether anybody overrides it, and would be handed to the mode for
    ever. The copy skips the question, so that the mode sees what the function calls instead.
    """
    if not isinstance(func, types.FunctionType) or func.__globals__ is not vars(F):
        return None
    copied = types.FunctionType(
        func.__code__,
        {**func.__globals__, **_NO_OVERRIDES},
        func.__name__,
        func.__defaults__,
        func.__closure__,
    )
    copied.__kwdefaults__ = func.__kwdefaults__
    return copied
