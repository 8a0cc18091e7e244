"""A small table for Jupyter."""

from __future__ import annotations

import html
from collections.abc import Mapping


def html_table(caption: str, rows: Mapping[str, object]) -> str:
    """Lay out names and values.

    Args:
        caption: The table's caption.
        rows: Name -> value, shown as text.

    Returns:
        HTML.

    Example:
        >>> html_table("Sizes", {"u": 20})
        '<table><caption>Sizes</caption><tr><th>u</th><td>20</td></tr></table>'
    """
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>{html.escape(caption)}</caption>{cells}</table>"
