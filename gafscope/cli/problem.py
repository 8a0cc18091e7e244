"""The user's own model: `--problem package.module:function`, imported from the current folder."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from gafscope.analyses.ranking import check_true_targets
from gafscope.calibration.microbatches import take
from gafscope.errors import UserError, unknown_name
from gafscope.gradients import Loss
from gafscope.gradients.isolation import untouched
from gafscope.gradients.loss import mean_loss
from gafscope.gradients.problem import batch_size

_RETURNS = "(model, loss, data) or (model, loss, data, {'true_targets': labels})"
_TRIED = 4


@final
@dataclass(frozen=True, eq=False)
class Task:
    """What is to be diagnosed.

    Attributes:
        name: What it is called in file names.
        model: The model.
        loss: The loss, `(model, batch) -> losses`.
        data: The training data as one batch.
        true_targets: (n,) labels known to be right; None where they are not known.
    """

    name: str
    model: nn.Module
    loss: Loss
    data: Any
    true_targets: Tensor | None = None


def load_problem(spec: str) -> Task:
    """Import a function, call it, and check and try what it returns.

    Args:
        spec: `package.module:function`, found from the current folder or on Python's path. The
            function takes no arguments and returns `(model, loss, data)`, and as an optional
            fourth part a dict with `true_targets`.

    Returns:
        The model, the loss and the data.

    Raises:
        UserError: If there is no such module or function, it fails (the message names file and
            line), or it returns something else.
    """
    name, function = _find(spec)
    with explained(f"The function '{spec}' failed"):
        found = function()
    task = _checked(spec, found, name)
    with explained(f"The loss of '{spec}' failed on its first samples"):
        count = min(batch_size(task.data), _TRIED)
        with untouched(task.model), torch.no_grad():
            losses = task.loss(task.model, take(task.data, torch.arange(count)))
        mean_loss(losses, count)
    return task


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an exception of the user's own code into one message with the file and the line.

    Args:
        what: What failed, the beginning of the message.

    Raises:
        UserError: In place of any exception but one that explains itself.
    """
    try:
        yield
    except UserError:
        raise
    # A script that calls sys.exit() at its end is a mistake like any other.
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{what}{_place(error)}: {_reason(error)}. Correct it and run the command again."
        ) from error


def _find(spec: str) -> tuple[str, Callable[[], Any]]:
    module_name, colon, function_name = spec.partition(":")
    parts = [*module_name.split("."), function_name]
    if not colon or not all(part.isidentifier() for part in parts):
        raise UserError(
            "--problem is written package.module:function, e.g. my_model:build for the "
            "function build in my_model.py of the current folder (a.b:build for a/b.py), but found "
            f"'{spec}'."
        )
    with explained(f"Importing '{module_name}' failed"):
        module = _import(module_name)
    function = getattr(module, function_name, None)
    if function is None:
        raise unknown_name(f"function in {module_name}", function_name, _functions(module))
    if not callable(function):
        raise UserError(
            f"'{spec}' must be a function without arguments that returns {_RETURNS}, but its "
            f"type is {type(function).__name__}."
        )
    _check_arguments(spec, function)
    return function_name, function


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that the user's own module wants in vain is another mistake.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        near = difflib.get_close_matches(name, [p.stem for p in Path(here).glob("*.py")], n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UserError(
            f"There is no module '{error.name}' in {here} or on Python's path.{hint} Run the "
            "command where the module is, or set PYTHONPATH."
        ) from error


def _functions(module: ModuleType) -> list[str]:
    own = [n for n, value in vars(module).items() if inspect.isfunction(value) and n[0] != "_"]
    return own or ["(none is there)"]


def _check_arguments(spec: str, function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UserError(
            f"'{spec}' must take no arguments, but calling it without fails: {error}. Give its "
            "arguments default values."
        ) from error
    except ValueError:  # a callable that does not tell its arguments
        return


def _checked(spec: str, found: Any, name: str) -> Task:
    if not isinstance(found, tuple) or len(found) not in (3, 4):
        what = f"{len(found)} parts" if isinstance(found, tuple) else f"type {type(found).__name__}"
        raise UserError(f"'{spec}' must return {_RETURNS}, but it returned {what}.")
    model, loss, data, *more = cast("tuple[Any, ...]", found)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"The first part that '{spec}' returns must be a torch.nn.Module, but its type "
            f"is {type(model).__name__}; return {_RETURNS}."
        )
    if not isinstance(loss, Loss):
        raise UserError(
            f"The second part that '{spec}' returns must be a loss, a function (model, batch) -> "
            "losses of shape (B,) such as gafscope.supervised(torch.nn.functional.cross_entropy), "
            f"but its type is {type(loss).__name__}."
        )
    batch_size(data)
    true_targets = _true_targets(spec, more[0]) if more else None
    check_true_targets(data, true_targets)
    return Task(name, model, loss, data, true_targets)


def _true_targets(spec: str, more: Any) -> Tensor:
    if not isinstance(more, dict) or set(more) != {"true_targets"}:
        what = f"the keys {list(more)}" if isinstance(more, dict) else f"type {type(more).__name__}"
        raise UserError(
            f"The fourth part that '{spec}' returns must be a dict with the one key "
            f"'true_targets', but found {what}."
        )
    return more["true_targets"]


def _place(error: BaseException) -> str:
    """Name the last line of the user's own code that was running."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not _is_library(frame.filename):
            return f" at {frame.filename}, line {frame.lineno}, in {frame.name}"
    return ""


def _is_library(file: str) -> bool:
    package = str(Path(__file__).parents[1])
    places = ("site-packages", "dist-packages", str(Path(traceback.__file__).parent), package)
    return file.startswith("<") or any(place in file for place in places)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    first = text.strip().splitlines()[0] if text and text.strip() else "no message"
    return f"{type(error).__name__}: {first.rstrip('.')}"
