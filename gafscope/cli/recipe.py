"""The settings of an analysis as a file that `--config` reads again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from gafscope.errors import UserError

NAME = "recipe.yaml"
# Where and how to run, which is nobody else's business.
_ELSEWHERE = ("data_dir", "download", "download_url", "device", "run_dir", "progress")


def recipe_text(command: str, settings: Any) -> str:
    """Write settings down.

    Args:
        command: The command that they are for.
        settings: A dataclass; the fields of dataclasses in it stand beside its own.

    Returns:
        YAML with every setting but those that say where to run.
    """
    head = f"# python -m gafscope {command} --config {NAME}\n"
    return head + yaml.safe_dump(_plain(settings), sort_keys=False, width=100)


def recipe_digest(path: Path) -> str:
    """Give a digest of what a recipe says, however it is laid out.

    Args:
        path: The recipe.

    Returns:
        12 hexadecimal digits.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The recipe {path} is not valid YAML: {reason}.") from error
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _plain(settings: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            values |= _plain(value)
        elif field.name not in _ELSEWHERE:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values
