"""Rules that turn micro-gradients into one update, and gates that decide when to step.

A weighting maps a Gramian to a `Decision`; the update is `sum_i w_i g_i`. One rule a file;
`per_sample_step` writes the update of any rule into `.grad`.
"""

from gafscope.aggregation.check import check_decision
from gafscope.aggregation.decision import Decision, Weighting
from gafscope.aggregation.gaf import GAF
from gafscope.aggregation.gates import Gate, RandomSkip, Yoked
from gafscope.aggregation.halving import HalvingGAF
from gafscope.aggregation.mean import Mean
from gafscope.aggregation.per_sample import PerSampleStep, per_sample_step
from gafscope.aggregation.sequential import Fold, Sequential, Visitor

__all__ = [
    "GAF",
    "Decision",
    "Fold",
    "Gate",
    "HalvingGAF",
    "Mean",
    "PerSampleStep",
    "RandomSkip",
    "Sequential",
    "Visitor",
    "Weighting",
    "Yoked",
    "check_decision",
    "per_sample_step",
]
