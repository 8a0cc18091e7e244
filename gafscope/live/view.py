"""Which live view fits the place."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from gafscope.live.notebook import NotebookPanel
from gafscope.live.terminal import ProgressLine


def live_view(config: Mapping[str, Any]) -> NotebookPanel | ProgressLine:
    """Make the panel in Jupyter, the progress line anywhere else.

    Args:
        config: Settings of the run.

    Returns:
        A listener that is a context manager too: entering shows the view, leaving ends it.

    Raises:
        UserError: If Jupyter's panel needs ipywidgets, which is not installed.
    """
    return NotebookPanel(config) if in_notebook() else ProgressLine()


def in_notebook() -> bool:
    """Tell whether a Jupyter kernel runs this program, as tqdm does."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
