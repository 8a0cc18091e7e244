"""Options given as text: of a network, a data set or a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gafscope.aggregation import Rule, build_rule
from gafscope.trainer.settings import TrainSettings

# YAML's and Python's words for values that are no text.
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def make_rule(settings: TrainSettings) -> Rule:
    """Make the rule that settings describe.

    Args:
        settings: The settings.

    Returns:
        The rule.

    Raises:
        UserError: If there is no such rule, or it refuses its options.
    """
    return build_rule(settings.rule, settings.tau, **parse_options(settings.rule_options))


def parse_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Read the values of options: numbers, true, false, none, text, or a list with commas.

    Args:
        options: Option name -> text, or a value that is no text already.

    Returns:
        Option name -> value.

    Example:
        >>> parse_options({"stem": "imagenet", "hidden": "256,128", "width": "32"})
        {'stem': 'imagenet', 'hidden': (256, 128), 'width': 32}
    """
    return {name: _parse(value) for name, value in (options or {}).items()}


def _parse(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    if "," in value:
        return tuple(_parse(part.strip()) for part in value.split(",") if part.strip())
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value
