"""A figure that shows itself in Jupyter without pyplot. Import this only when drawing."""

from __future__ import annotations

import io
from typing import final

from matplotlib.figure import Figure


@final
class ShownFigure(Figure):
    """matplotlib's figure, and a picture of it for Jupyter.

    A plain `Figure` shows as text until pyplot has been imported; ours never goes through
    pyplot, so that drawing works without a display and leaves no global state.
    """

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=100)
        return picture.getvalue()
