"""The panel in a display that nobody sees, to measure what it costs a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

from gafscope.live.notebook import NotebookPanel, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def unseen_panel(clock: Callable[[], float]) -> NotebookPanel:
    """Make the panel of Jupyter without Jupyter.

    It draws every picture that Jupyter would be sent, as rarely as it would there.

    Args:
        clock: Gives the time of the loop in seconds.

    Returns:
        A listener that is a context manager too.

    Raises:
        UserError: If ipywidgets is not installed.
    """
    return NotebookPanel({"tau": 0.97}, show=_Nowhere, clock=clock)


@final
class _Nowhere:
    """Stands for the handle of a displayed widget."""

    def __init__(self, widget: Any):
        pass

    def update(self, figure: Figure) -> None:
        """Draw the last picture, as Jupyter would."""
        png(figure)
