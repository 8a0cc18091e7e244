"""Change the `step` of one object for a while.

The object gets a class of its own, which leaves its attributes alone: a scheduler's `state_dict`
copies them all, and would take a function that was put there into every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, final

_MARK = "_gafscope_override"


@final
class Override:
    """Replaces `thing.step` until it is undone.

    Args:
        thing: A scheduler or a GradScaler.
        step: Called as `step(original, *args, **kwargs)`.
    """

    def __init__(self, thing: Any, step: Callable[..., Any]):
        self._thing = thing
        self._class: Any = type(thing)
        self._active = True
        original: Callable[..., Any] = self._class.step

        def replaced(own: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._active:
                return original(own, *args, **kwargs)
            return step(partial(original, own), *args, **kwargs)

        names = {"step": replaced, "__module__": self._class.__module__, _MARK: self}
        self._made: type = type(self._class.__name__, (self._class,), names)
        thing.__class__ = self._made

    def undo(self) -> None:
        """Take the replacement back; where a later one is still there, its undoing ends both."""
        self._active = False
        kind = type(self._thing)
        while (other := vars(kind).get(_MARK)) is not None and not other._active:
            kind = other._class
        self._thing.__class__ = kind
