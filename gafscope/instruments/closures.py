"""Steps whose gradients are made by a closure that the optimizer runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gafscope.errors import UserError


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], name: str, after: Callable[[], None]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Do something once the closure of a step has run.

    Args:
        args: What the optimizer's step is given, the optimizer first.
        kwargs: Likewise.
        name: The optimizer's name, for the message.
        after: Called after the closure, before the optimizer uses the gradients.

    Returns:
        The arguments to step with instead; None where there is no closure.

    Raises:
        UserError: When the closure is run a second time in one step.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return None
    calls = 0

    def watched() -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise UserError(
                f"{name} runs its closure several times a step, so there is no set of "
                "micro-gradients of one step; use an optimizer that takes one gradient a step."
            )
        result = closure()
        after()
        return result

    if len(args) > 1:
        return (args[0], watched, *args[2:]), kwargs
    return args, {**kwargs, "closure": watched}
