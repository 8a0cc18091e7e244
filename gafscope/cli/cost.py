"""`python -m gafscope cost`."""

from __future__ import annotations

from collections.abc import Sequence


def run_cost(arguments: Sequence[str]) -> None:
    """Later."""
