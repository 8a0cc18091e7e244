"""The values of single training settings: of the right type, and put into their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gafscope.errors import UserError, unknown_name
from gafscope.trainer import TrainSettings

_HINTS = get_type_hints(TrainSettings)
_OPTIONS = ("data_options", "model_options", "rule_options")
# Where and how a trial runs is the sweep's own business.
_OWN = {
    "seed": "write `seeds:` beside the settings",
    "device": "write `devices:` beside the settings",
    "run_dir": "every trial has a folder of its own below the sweep's `folder:`",
    "progress": "a sweep shows one bar of its own",
}
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    NoneType: "null",
    dict: "a mapping of options",
}


def check_value(key: str, value: Any, where: str) -> Any:
    """Check the value of one setting.

    Args:
        key: A field of `TrainSettings`; `model_options.NAME` and its like name one option.
        value: Its value, as YAML reads it.
        where: Where it stands, for messages.

    Returns:
        The value as `TrainSettings` takes it.

    Raises:
        UserError: If there is no such setting, it cannot be set here, or the value has another
            type.
    """
    field, dot, option = key.partition(".")
    if field in _OWN:
        raise UserError(f"{where} must not hold '{key}', found {value!r}: {_OWN[field]}.")
    if dot:
        if field not in _OPTIONS or not option:
            raise UserError(
                f"The key '{key}' in {where} names no option: options are written "
                f"{', '.join(f'{name}.NAME' for name in _OPTIONS)}; correct it."
            )
        return option_text(value)
    if field not in _HINTS:
        raise unknown_name(f"key in {where}", key, [f.name for f in fields(TrainSettings)])
    kinds = _kinds(_HINTS[field])
    for kind in kinds:
        if (taken := _take(value, kind)) is not None or (value is None and kind is NoneType):
            return taken
    words = " or ".join(_WORDS.get(kind, repr(kind)) for kind in kinds)
    raise UserError(
        f"The setting '{key}' in {where} must be {words}, but is {value!r}; correct it."
    )


def put(settings: TrainSettings, values: Mapping[str, Any]) -> TrainSettings:
    """Put values into settings.

    Args:
        settings: The settings.
        values: Key -> value, from `check_value`; an option that is None is left out.

    Returns:
        Other settings.
    """
    for key, value in values.items():
        field, dot, option = key.partition(".")
        if dot:
            options = dict(getattr(settings, field) or {})
            options.pop(option, None)
            value = options if value is None else options | {option: option_text(value)}
        settings = replace(settings, **{field: value or None if field in _OPTIONS else value})
    return settings


def option_text(value: Any) -> str | None:
    """Write an option's value as the command line would.

    Args:
        value: A number, a text, a bool, None, or a list of these.

    Returns:
        The text; None for None. A list of one ends with a comma, which tells it from its element.
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        return str(value)
    return f"{value[0]}," if len(value) == 1 else ",".join(map(str, value))


def _kinds(hint: Any) -> list[Any]:
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds: list[Any] = []
    for part in parts:
        kinds += get_args(part) if get_origin(part) is Literal else [get_origin(part) or part]
    return kinds


def _take(value: Any, kind: Any) -> Any:
    """Give the value if it is of this kind, None if it is not."""
    if kind is dict:
        texts = {str(k): option_text(v) for k, v in value.items()} if _is_mapping(value) else None
        return None if texts is None or _nested(value.values()) else texts
    if not isinstance(kind, type):
        return value if value == kind else None
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if kind is float and isinstance(value, str):
        # YAML reads 1e-3 as a text.
        try:
            return float(value)
        except ValueError:
            return None
    if kind is float and isinstance(value, int | float):
        return float(value)
    return value if isinstance(value, kind) else None


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _nested(values: Iterable[Any]) -> bool:
    return any(_is_mapping(value) for value in values)
