"""Rules that turn micro-gradients into one update, and gates that decide when to step.

A weighting maps a Gramian to a `Decision`; the update is `sum_i w_i g_i`. A rule that needs rows
maps the gradients themselves to an `Aggregate`; `kinds.py` says what else a rule may be. One rule
a file; `per_sample_step` writes the update of any rule into `.grad`.
"""

from gafscope.aggregation.adaptive import AdaptiveGAF
from gafscope.aggregation.apply import aggregate, rows_needed
from gafscope.aggregation.by_bucket import ByBucket
from gafscope.aggregation.by_layer import ByLayer
from gafscope.aggregation.calibrated import CalibratedGAF
from gafscope.aggregation.check import check_decision
from gafscope.aggregation.clique import CliqueGAF
from gafscope.aggregation.coordinate_median import CoordinateMedian
from gafscope.aggregation.coordinatewise import coordinates_decision
from gafscope.aggregation.decision import Decision, Weighting
from gafscope.aggregation.direction_gate import DirectionGate
from gafscope.aggregation.ema_gate import EMAGate
from gafscope.aggregation.gaf import GAF
from gafscope.aggregation.gates import Gate, RandomSkip, Yoked
from gafscope.aggregation.geometric_median import GeometricMedian
from gafscope.aggregation.halving import HalvingGAF
from gafscope.aggregation.kinds import (
    Aggregate,
    Calibrating,
    Coordinatewise,
    Observing,
    Recording,
    RowRule,
    Rule,
    Scoped,
    ScopedDecision,
    Stateful,
)
from gafscope.aggregation.kmeans import KMeansDirections
from gafscope.aggregation.krum import Krum, MultiKrum
from gafscope.aggregation.l2 import L2Threshold
from gafscope.aggregation.leave_one_out import LeaveOneOut
from gafscope.aggregation.mahalanobis import MahalanobisThreshold
from gafscope.aggregation.mean import Mean
from gafscope.aggregation.per_sample import PerSampleStep, per_sample_step
from gafscope.aggregation.previous_gate import PreviousGate
from gafscope.aggregation.registry import RULES, build_rule, rule_names
from gafscope.aggregation.sand_mask import SANDMask
from gafscope.aggregation.sequential import Fold, Sequential, Visitor
from gafscope.aggregation.shrinkage import InverseVariance
from gafscope.aggregation.sign_agreement import SignAgreement
from gafscope.aggregation.soft import SoftGAF
from gafscope.aggregation.top_m import TopM
from gafscope.aggregation.torchjd import from_torchjd
from gafscope.aggregation.trimmed_mean import TrimmedMean

__all__ = [
    "GAF",
    "RULES",
    "AdaptiveGAF",
    "Aggregate",
    "ByBucket",
    "ByLayer",
    "CalibratedGAF",
    "Calibrating",
    "CliqueGAF",
    "CoordinateMedian",
    "Coordinatewise",
    "Decision",
    "DirectionGate",
    "EMAGate",
    "Fold",
    "Gate",
    "GeometricMedian",
    "HalvingGAF",
    "InverseVariance",
    "KMeansDirections",
    "Krum",
    "L2Threshold",
    "LeaveOneOut",
    "MahalanobisThreshold",
    "Mean",
    "MultiKrum",
    "Observing",
    "PerSampleStep",
    "PreviousGate",
    "RandomSkip",
    "Recording",
    "RowRule",
    "Rule",
    "SANDMask",
    "Scoped",
    "ScopedDecision",
    "Sequential",
    "SignAgreement",
    "SoftGAF",
    "Stateful",
    "TopM",
    "TrimmedMean",
    "Visitor",
    "Weighting",
    "Yoked",
    "aggregate",
    "build_rule",
    "check_decision",
    "coordinates_decision",
    "from_torchjd",
    "per_sample_step",
    "rows_needed",
    "rule_names",
]
