"""Unpickling that admits NumPy arrays and nothing else, so that no file can run code."""

from __future__ import annotations

import io
import pickle
from typing import Any, final

import numpy as np

from gafscope.errors import UserError

# NumPy's own array pickles name this function; asking an array for it finds it in NumPy 1 and 2
# alike, without importing the old module path, which warns.
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]

ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""Every global that a pickle may name, as (module, name); the name is compared whole."""


@final
class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        admitted = ADMITTED.get((module_name, global_name))
        if admitted is None:
            raise pickle.UnpicklingError(f"it asks for '{module_name}.{global_name}'")
        return admitted


def load_arrays(data: bytes, name: str) -> Any:
    """Unpickle dicts, lists, strings, numbers and NumPy arrays; refuse everything else.

    Args:
        data: The pickle; one that Python 2 wrote is read with latin-1 strings.
        name: What to call the file in an error.

    Returns:
        The object in the pickle.

    Raises:
        UserError: The pickle names any other class or function, which is then neither imported nor
            run, or it is no pickle at all.

    Example:
        >>> load_arrays(pickle.dumps({"labels": [1, 2]}), "demo")
        {'labels': [1, 2]}
    """
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    # A damaged pickle can raise nearly anything: IndexError, KeyError, UnicodeDecodeError ...
    except Exception as error:
        raise UserError(
            f"'{name}' is not a pickle of NumPy arrays and plain values, the only kind that is "
            f"read here ({error}): replace it by the official file."
        ) from error
