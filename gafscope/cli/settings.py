"""Settings from a preset, a YAML file and the command line, each overruling the one before."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from gafscope.errors import UserError, unknown_name

S = TypeVar("S")


def read_settings(
    command: str, presets: Mapping[str, S], arguments: Sequence[str], also: str = ""
) -> S:
    """Read the settings of a command.

    Args:
        command: The command, for messages.
        presets: Preset name -> settings, a dataclass; the first one is the default.
        arguments: What follows the command on the command line.
        also: What --help says besides.

    Returns:
        The settings.

    Raises:
        UserError: If the preset, the file or a key in it is wrong.
        SystemExit: With code 0 after --help; with code 2 after a wrong flag or value.
    """
    rest, preset = take("--preset", list(arguments))
    rest, config = take("--config", rest)
    name = next(iter(presets)) if preset is None else preset
    if name not in presets:
        raise unknown_name("preset", name, presets)
    settings = presets[name]
    # The file's values become flags before the user's own, so that both are checked alike and
    # the command line wins.
    flags = [] if config is None else _as_flags(read_yaml(Path(config)), settings, config)
    return tyro.cli(
        type(settings),
        prog=f"python -m gafscope {command}",
        default=settings,
        args=[*flags, *rest],
        description=f"{_description(settings, presets)} {also}".strip(),
    )


def take(flag: str, arguments: list[str]) -> tuple[list[str], str | None]:
    """Take a flag and its value out of the arguments.

    Args:
        flag: E.g. "--preset".
        arguments: Words of the command line.

    Returns:
        The other words, and the value; None where the flag is not given.

    Raises:
        UserError: If the flag has no value.
    """
    for i, argument in enumerate(arguments):
        if argument == flag:
            if i + 1 == len(arguments):
                raise UserError(f"{flag} needs a value after it.")
            return arguments[:i] + arguments[i + 2 :], arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return arguments[:i] + arguments[i + 1 :], argument.partition("=")[2]
    return arguments, None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of settings.

    Args:
        path: The file.

    Returns:
        Key -> value; nothing for an empty file.

    Raises:
        UserError: If it cannot be read, is no YAML, or holds something else than a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the settings file {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The settings file {path} is not valid YAML: {reason}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"The settings file {path} must hold lines of 'key: value', but it holds a "
            f"{type(values).__name__}."
        )
    return values


def _as_flags(values: Mapping[str, Any], settings: Any, source: str) -> list[str]:
    known = _names(settings)
    flags: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise unknown_name(f"key in {source}", str(key), known)
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list) and isinstance(getattr(settings, name), tuple):
            flags += [flag, *map(str, value)]
        elif isinstance(value, dict):
            flags += [flag, *(_text(part) for item in value.items() for part in item)]
        else:
            flags += [flag, _text(value)]
    return flags


def _text(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    # The comma tells a list of one from its element.
    return f"{value[0]}," if len(value) == 1 else ",".join(map(str, value))


def _names(settings: Any) -> list[str]:
    names = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        names += _names(value) if is_dataclass(value) else [field.name]
    return names


def _description(settings: Any, presets: Mapping[str, Any]) -> str:
    text = inspect.cleandoc(type(settings).__doc__ or "")
    names = ", ".join(presets)
    return (
        f"{text}\n\n--preset NAME starts from other defaults ({names}); --config FILE reads a YAML "
        "file of these settings. The command line wins over the file, the file over the preset."
    )
