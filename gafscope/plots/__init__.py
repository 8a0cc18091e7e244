"""Tables and matrices in, figures out.

`plot_gramian` draws one step's agreement, `plot_run` a run over its steps, `plot_comparison`
rules against each other; `style` holds the one look and `save_figure`. matplotlib and seaborn
are imported when something is drawn, not before.
"""

from gafscope.plots.curves import plot_comparison
from gafscope.plots.matrices import plot_gramian
from gafscope.plots.runs import plot_run
from gafscope.plots.style import RULE_COLOURS, RULE_LINES, rule_style, save_figure, theme

__all__ = [
    "RULE_COLOURS",
    "RULE_LINES",
    "plot_comparison",
    "plot_gramian",
    "plot_run",
    "rule_style",
    "save_figure",
    "theme",
]
