"""What the commands print: tables that fit a terminal, and wrapped sentences."""

from __future__ import annotations

import math
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from gafscope.errors import UserError

# Columns of differences in points.
_POINTS = ("over_averaging", "over_yoked", "over_same_updates", "over_random_skip", "over_control")


def make_folder(folder: Path) -> None:
    """Create a folder and those above it.

    Args:
        folder: The folder; it may be there already.

    Raises:
        UserError: If the system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot create the folder {folder}: {error.strerror}. Choose another one."
        ) from error


def print_table(table: pd.DataFrame) -> None:
    """Print a table of an analysis: `mean [low, high]`, shares as percentages.

    Args:
        table: Columns `x`, `x_low` and `x_high` become one.
    """
    print(format_table(table).to_string(index=False))


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """Turn a table's numbers into text.

    Args:
        table: Columns `x`, `x_low` and `x_high` become one.

    Returns:
        A table of strings.
    """
    shown: dict[str, list[str]] = {}
    for column in map(str, table.columns):
        if column.endswith(("_low", "_high")):
            continue
        values = table[column].tolist()
        missing = [math.nan] * len(values)
        lows = table[f"{column}_low"].tolist() if f"{column}_low" in table else missing
        highs = table[f"{column}_high"].tolist() if f"{column}_high" in table else missing
        title = column.replace("_", " ") + (" (%)" if _is_share(column) else "")
        cells = zip(values, lows, highs, strict=True)
        shown[title] = [_cell(column, *cell) for cell in cells]
    return pd.DataFrame(shown)


def print_text(text: str) -> None:
    """Print paragraphs, wrapped to the terminal.

    Args:
        text: Paragraphs separated by blank lines.
    """
    width = min(shutil.get_terminal_size((100, 20)).columns, 100)
    for paragraph in text.split("\n\n"):
        print("\n" + textwrap.fill(paragraph, width))


def _is_share(column: str) -> bool:
    return column.endswith("accuracy") or column == "accepted"


def _is_points(column: str) -> bool:
    return column.endswith(_POINTS)


def _cell(column: str, value: Any, low: float, high: float) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "-"
    factor, digits = (100, 1) if _is_share(column) else (1, 1 if abs(value) >= 10 else 3)
    digits = 1 if _is_points(column) else digits
    text = f"{factor * value:.{digits}f}"
    if math.isnan(low):
        return text
    return f"{text} [{factor * low:.{digits}f}, {factor * high:.{digits}f}]"
