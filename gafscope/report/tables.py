"""The tables of a report: numbers, settings, provenance, and the steps themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from gafscope.records import Run
from gafscope.report.facts import LISTS, Facts, Trend
from gafscope.report.matrices import spread
from gafscope.report.verdict import percent

if TYPE_CHECKING:
    import pandas as pd

_LONGEST_TEXT = 400
_MOST_ENTRIES = 200
_MOST_ROWS = 20
_MOST_COLUMNS = 24
_SHARES = ("accuracy", "validation_accuracy")


@final
@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        caption: What it shows.
        head: Titles of the columns.
        rows: Cells; the first one of a row is its title.
    """

    caption: str
    head: list[str]
    rows: list[list[str]]


def numbers(run: Run, facts: Facts) -> dict[str, str]:
    """Give a run's final numbers, each with its name.

    Args:
        run: The run.
        facts: Its numbers.

    Returns:
        Name -> text; the same names for every run, "-" where there is nothing.
    """
    made = None if facts.updates is None else facts.updates / facts.steps
    updates = "-" if made is None else f"{facts.updates:,} ({percent(made)})"
    count = facts.not_finite
    best = run.summary.get("best_step")
    return {
        "steps": f"{facts.steps:,}",
        "updates": updates,
        "accepted": _share(facts.accepted),
        "not finite": "-" if count is None else f"{count:,}",
        "distance, start": _mean(facts.distance, "first", ".3f"),
        "distance, end": _mean(facts.distance, "last", ".3f"),
        "training loss, end": _mean(facts.loss, "last", ".4g"),
        "training accuracy, end": _share(_last(facts.train_accuracy)),
        "validation accuracy, last": _share(facts.validation_accuracy),
        "validation accuracy, best": _share(facts.best_validation_accuracy),
        "test accuracy": _share(run.summary.get("test_accuracy")),
        "best validation at step": "-" if best is None else clip(best),
        "test accuracy at best validation": _share(run.summary.get("best_test_accuracy")),
    }


def pairs(caption: str, entries: Mapping[str, Any], head: Sequence[str]) -> Table:
    """Lay a mapping out as a table of two columns.

    Args:
        caption: What it shows.
        entries: Name -> value, mappings inside it become rows of their own.
        head: The two titles.

    Returns:
        The table, of at most 200 rows.
    """
    rows = [[clip(name), clip(value)] for name, value in _flat(entries).items()]
    left = len(rows) - _MOST_ENTRIES
    if left > 0:
        rows = [*rows[:_MOST_ENTRIES], [f"{left:,} more", "not shown"]]
    return Table(caption, list(head), rows)


def step_table(scalars: pd.DataFrame) -> Table:
    """Show some of the steps, evenly spread, with every column of numbers.

    Args:
        scalars: A run's scalars, numbers only.

    Returns:
        The table, of at most 20 rows.
    """
    names = [name for name in scalars.columns if name not in LISTS]
    names = ["step", *(name for name in names if name != "step")][:_MOST_COLUMNS]
    places = spread(len(scalars), _MOST_ROWS)
    rows = [[_cell(name, scalars[name].iloc[place]) for name in names] for place in places]
    caption = f"{len(rows)} of {len(scalars):,} steps, evenly spread"
    if len(rows) == len(scalars):
        caption = "Every step"
    return Table(caption, [clip(name).replace("_", " ") for name in names], rows)


def layer_table(distances: pd.DataFrame) -> Table:
    """Show each layer's mean distance at the start and at the end.

    Args:
        distances: Layers by recorded steps.

    Returns:
        The table; start and end are thirds of the recorded steps.
    """
    third = max(1, distances.shape[1] // 3)
    rows = [
        [
            clip(name),
            _number(row.iloc[:third].mean(), ".3f"),
            _number(row.iloc[-third:].mean(), ".3f"),
        ]
        for name, row in distances.iterrows()
    ]
    span = f"first and last {third}" if third > 1 else "first and last one"
    caption = f"Mean cosine distance by layer: {span} of the {distances.shape[1]} steps shown"
    return Table(caption, ["layer", "start", "end"], rows)


def clip(value: Any) -> str:
    """Write a value as one line of at most 400 characters.

    Args:
        value: Whatever a stranger's YAML or JSON holds.

    Returns:
        The text; None is "none" and a bool "yes" or "no".
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = json.dumps(value, default=str) if isinstance(value, (list, dict)) else str(value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


def _flat(entries: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in entries.items():
        if isinstance(value, dict) and value and not prefix:
            flat |= _flat(value, f"{name} ")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _cell(name: str, value: float) -> str:
    if name in _SHARES:
        return _share(value)
    if name == "stepped":
        return "-" if math.isnan(value) else "yes" if value else "no"
    whole = math.isfinite(value) and float(value).is_integer()
    return _number(value, ",.0f" if whole and abs(value) < 1e9 else ".4g")


def _share(value: Any) -> str:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return percent(value) if known and math.isfinite(value) else "-"


def _mean(trend: Trend | None, end: str, form: str) -> str:
    return "-" if trend is None else format(getattr(trend, end), form)


def _last(trend: Trend | None) -> float:
    return math.nan if trend is None else trend.last


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
