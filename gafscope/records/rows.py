"""A run's scalars: one row a step, one line of valid JSON a row.

JSON has no NaN and no infinity, so they are written as `null`, `"inf"` and `"-inf"`. Every other
float is written with the fewest digits that read back as exactly the same number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafscope.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_INFINITIES = {"inf": math.inf, "-inf": -math.inf}
_AS_IS = (int, bool, str, type(None))
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


def encode_row(row: Mapping[str, Any]) -> bytes:
    r"""Write one row as one line.

    Args:
        row: Column name -> number, bool, string, None, or a list of these. NumPy scalars and
            one-element or one-dimensional tensors and arrays are taken as well.

    Returns:
        The line as bytes, with its line end.

    Raises:
        UserError: A column holds something else.

    Example:
        >>> encode_row({"step": 3, "loss": float("nan"), "distances": [0.5, float("inf")]})
        b'{"step":3,"loss":null,"distances":[0.5,"inf"]}\n'
    """
    return _encode(plain(row)).encode() + b"\n"


def plain(value: Any) -> Any:
    """Turn a value into what strict JSON can hold.

    Args:
        value: Number, bool, string, None, NumPy or torch scalar, or lists and mappings of these.

    Returns:
        The same with NaN as None and infinities as `"inf"` and `"-inf"`.

    Raises:
        UserError: There is something else in it.
    """
    kind = type(value)
    if kind is float:
        # x - x is 0 for every finite x and NaN for all others.
        return value if value - value == 0 else _word(value)
    if kind in _AS_IS:
        return value
    if kind is list or kind is tuple:
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise UserError(
        f"A run's record cannot hold a {kind.__name__} (found {value!r}). "
        "Give a number, a bool, a string, None or a list of these."
    )


def read_rows(path: Path) -> pd.DataFrame:
    """Read a run's scalars back.

    Args:
        path: `scalars.jsonl` of a run; a last line that was cut off by a crash is passed over. A
            run that was cut short before its first step has no such file, and no rows.

    Returns:
        One row a step, columns in the order of their first appearance. A number that was NaN,
        None or absent is NaN; a list that was absent is None.

    Raises:
        UserError: A line other than the last one is not a JSON object.
    """
    import pandas as pd

    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        rows = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError as error:
        raise _damaged(path, lines) from error
    if not all(type(row) is dict for row in rows):
        raise _damaged(path, lines)
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in names})


def _word(value: float) -> str | None:
    if math.isnan(value):
        return None
    return "inf" if value > 0 else "-inf"


def _column(values: list[Any]) -> pd.Series:
    import pandas as pd

    kinds = {type(value) for value in values}
    if list in kinds:
        lists = [None if value is None else _numbers(value) for value in values]
        return pd.Series(lists, dtype=object)
    texts = {value for value in values if type(value) is str}
    if texts - _INFINITIES.keys():
        return pd.Series(values)
    if texts or type(None) in kinds:
        return pd.Series(_numbers(values), dtype="float64")
    return pd.Series(values)


def _numbers(value: Any) -> Any:
    if type(value) is list:
        return [_numbers(item) for item in value]
    if type(value) is str:
        return _INFINITIES.get(value, value)
    return math.nan if value is None else value


def _damaged(path: Path, lines: list[bytes]) -> UserError:
    number = next(n for n, line in enumerate(lines, start=1) if not _is_object(line))
    return UserError(
        f"Line {number} of {path} is not a JSON object. The file was changed or damaged after "
        "it was written: restore it, or delete that line."
    )


def _is_object(line: bytes) -> bool:
    try:
        return type(json.loads(line)) is dict
    except ValueError:
        return False
