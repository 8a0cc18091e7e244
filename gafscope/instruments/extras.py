"""Libraries that gafscope can work with and does not need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gafscope.errors import UserError


def require(module: str, extra: str, needed_by: str) -> Any:
    """Import a library that one of gafscope's extras brings.

    Args:
        module: The module, as it is imported.
        extra: The extra's name.
        needed_by: Who needs it.

    Returns:
        The module.

    Raises:
        UserError: If it is not installed.

    Example:
        >>> require("no_such_library", "hf", "WatchCallback")
        Traceback (most recent call last):
        gafscope.errors.UserError: WatchCallback needs no_such_library, which cannot be imported \
(No module named 'no_such_library'): pip install 'gafscope[hf]'.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise UserError(
            f"{needed_by} needs {library}, which cannot be imported ({error}): "
            f"pip install 'gafscope[{extra}]'."
        ) from error


def base_class(module: str, name: str) -> Any:
    """Give a library's class to derive from, so that our module can be imported without it.

    Args:
        module: The module that has the class.
        name: The class.

    Returns:
        The class; `object` where the library is not installed, which `require` then says when an
        object is made.
    """
    try:
        return getattr(import_module(module), name)
    except ImportError:
        return object
