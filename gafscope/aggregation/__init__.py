"""Rules that turn micro-gradients into one update, and gates that decide when to step.

A weighting maps a Gramian to a `Decision`; the update is `sum_i w_i g_i`. One rule a file.
"""

from gafscope.aggregation.decision import Decision, Weighting
from gafscope.aggregation.gaf import GAF
from gafscope.aggregation.gates import Gate, RandomSkip, Yoked
from gafscope.aggregation.halving import HalvingGAF
from gafscope.aggregation.mean import Mean
from gafscope.aggregation.sequential import Fold, Sequential, Visitor

__all__ = [
    "GAF",
    "Decision",
    "Fold",
    "Gate",
    "HalvingGAF",
    "Mean",
    "RandomSkip",
    "Sequential",
    "Visitor",
    "Weighting",
    "Yoked",
]
