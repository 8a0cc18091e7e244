"""What the commands print: tables that fit a terminal, and wrapped sentences."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any

import pandas as pd

_SHARES = ("accuracy", "accepted", "_low", "_high")


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
    for column in table.columns:
        if column.endswith(("_low", "_high")):
            continue
        low, high = table.get(f"{column}_low"), table.get(f"{column}_high")
        title = column.replace("_", " ") + (" (%)" if _is_share(column) else "")
        shown[title] = [
            _cell(
                column, value, *((low[i], high[i]) if low is not None and high is not None else ())
            )
            for i, value in table[column].items()
        ]
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


def _cell(column: str, value: Any, low: Any = None, high: Any = None) -> str:
    if not isinstance(value, float):
        return str(value)
    if pd.isna(value):
        return "-"
    factor, digits = (100, 1) if _is_share(column) else (1, 0 if abs(value) >= 100 else 3)
    text = f"{factor * value:.{digits}f}"
    if low is None or pd.isna(low):
        return text
    return f"{text} [{factor * low:.{digits}f}, {factor * high:.{digits}f}]"
