"""The live view of Jupyter: a panel that is drawn anew while the loop runs."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

from gafscope.instruments import Record
from gafscope.instruments.extras import require
from gafscope.live.history import History
from gafscope.live.throttle import Throttle
from gafscope.live.words import Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("gafscope")

# Together below 2% of the loop's time.
_PICTURE_SHARE, _TEXT_SHARE = 0.017, 0.002
_BETWEEN_PICTURES, _BETWEEN_TEXTS = 1.0, 0.5
_FULL_TO_EMPTY = 3.0
_DPI = 90


@final
class NotebookPanel:
    """Shows the panel below the cell that starts the watch, and keeps it up to date.

    Pictures replace each other inside one widget, so nothing flickers. When the watch stops the
    widget gives way to a plain picture, which stays in the saved notebook.

    Args:
        config: Settings of the run.
        show: Shows the widget and returns the handle that updates it; None is Jupyter's `display`.
        clock: Gives the time of the loop in seconds.

    Raises:
        UserError: If ipywidgets is not installed.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        show: Callable[[Any], Any] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._widgets = require("ipywidgets", "notebook", "live=True in Jupyter")
        self._history = History(config)
        self._words = Words()
        self._pictures = Throttle(_PICTURE_SHARE, _BETWEEN_PICTURES, clock)
        self._texts = Throttle(_TEXT_SHARE, _BETWEEN_TEXTS, clock)
        self._show = _display if show is None else show
        self._broken = False

    def __enter__(self) -> NotebookPanel:
        # Once for the fonts, and once to learn from an empty panel what a full one may cost.
        png(self._history.draw())
        with self._pictures.drawing(times=_FULL_TO_EMPTY):
            picture = png(self._history.draw())
        self._label = self._widgets.Label("waiting for the first recorded step")
        self._image = self._widgets.Image(value=picture, format="png", layout={"max_width": "100%"})
        self._box = self._widgets.VBox([self._label, self._image])
        self._handle: Any = self._show(self._box)
        return self

    def __call__(self, record: Record) -> None:
        """Take a record in, and show it when it is time to.

        Args:
            record: The record.
        """
        with self._pictures.spend():
            self._history.add(record)
            self._words.add(record)
        if self._texts.due:
            with self._texts.drawing():
                self._label.value = f"step {record.step:,}: {self._words}"
        if self._pictures.due:
            with self._pictures.drawing(), self._unless_broken():
                self._image.value = png(self._history.draw())

    def __exit__(self, *error: object) -> None:
        with self._unless_broken():
            self._handle.update(self._history.draw())
        for widget in (self._box, self._label, self._image):
            widget.close()

    @contextmanager
    def _unless_broken(self) -> Iterator[None]:
        """Pass over a drawing that fails: none is worth a training that has run for days."""
        try:
            yield
        except Exception as error:
            if not self._broken:
                log.warning("watch: the live panel could not be drawn: %r", error)
            self._broken = True


def _display(widget: Any) -> Any:
    from IPython.display import display

    return display(widget, display_id=True)


def png(figure: Figure) -> bytes:
    """Draw a figure as fast as can be.

    Args:
        figure: The figure.

    Returns:
        A PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    figure.set_dpi(_DPI)
    # savefig would draw everything twice.
    FigureCanvasAgg(figure).print_png(file, pil_kwargs={"compress_level": 1})
    return file.getvalue()
