"""The one error class for a user's mistake, and helpers that phrase it well.

Every message names the thing, the rule, the value found and the remedy.
The command line prints it without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import final


@final
class UserError(ValueError):
    """A mistake that the caller can put right; the message says how."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """Phrase the error for a name that is none of `choices`, offering the nearest one.

    Args:
        kind: What the name should have named, e.g. `"dataset"`.
        name: The name that was given.
        choices: Every name that is allowed.

    Returns:
        The error, ready to be raised.

    Example:
        >>> str(unknown_name("dataset", "cifar10o", ["digits", "cifar100"]))
        "Unknown dataset 'cifar10o'. Did you mean 'cifar100'? Choose from: digits, cifar100."
    """
    options = list(choices)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(f"Unknown {kind} '{name}'.{hint} Choose from: {', '.join(options)}.")
