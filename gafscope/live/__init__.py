"""Watching a loop while it runs: a panel in Jupyter, a progress line in a terminal.

`live_view` makes the one that fits; `run_panel` draws the same panel from a run's folder. Both
views are listeners of `gafscope.instruments.watch`, which turns to them with `live=True`.
`unseen_panel` is Jupyter's panel without Jupyter, to measure its cost.
"""

from gafscope.live.panel import run_panel
from gafscope.live.unseen import unseen_panel
from gafscope.live.view import live_view

__all__ = ["live_view", "run_panel", "unseen_panel"]
