"""See, use and check gradient agreement in PyTorch models.

The Gramian of k micro-gradients, `K[i, j] = <g_i, g_j>`, tells whether they agree; metrics and a
calibrated threshold say how far; rules such as GAF decide on it which of them to follow; the
trainer and its controls check what follows.
"""

from typing import TYPE_CHECKING, Any

from gafscope import aggregation, data, metrics, models
from gafscope.aggregation import (
    GAF,
    AdaptiveGAF,
    ByBucket,
    ByLayer,
    CalibratedGAF,
    CliqueGAF,
    CoordinateMedian,
    Decision,
    DirectionGate,
    EMAGate,
    GeometricMedian,
    HalvingGAF,
    InverseVariance,
    KMeansDirections,
    Krum,
    L2Threshold,
    LeaveOneOut,
    MahalanobisThreshold,
    Mean,
    MultiKrum,
    PerSampleStep,
    PreviousGate,
    RandomSkip,
    SANDMask,
    SignAgreement,
    SoftGAF,
    TopM,
    TrimmedMean,
    Weighting,
    Yoked,
    build_rule,
    from_torchjd,
    per_sample_step,
)
from gafscope.calibration import Calibration, calibrate, predict_curve
from gafscope.errors import UserError
from gafscope.geometry import cosine_distance
from gafscope.gradients import GradientRows, Gramian, gramian, microbatch_gradients, supervised
from gafscope.instruments import watch
from gafscope.metrics import Estimate
from gafscope.records import Run, load_run, replay
from gafscope.trainer import Trainer, TrainSettings, train

if TYPE_CHECKING:
    from gafscope.analyses.diagnose import diagnose
    from gafscope.analyses.diagnosis import Diagnosis
    from gafscope.distributed.distribute import distribute

__version__ = "0.1.0"

__all__ = [
    "GAF",
    "AdaptiveGAF",
    "ByBucket",
    "ByLayer",
    "CalibratedGAF",
    "Calibration",
    "CliqueGAF",
    "CoordinateMedian",
    "Decision",
    "Diagnosis",
    "DirectionGate",
    "EMAGate",
    "Estimate",
    "GeometricMedian",
    "GradientRows",
    "Gramian",
    "HalvingGAF",
    "InverseVariance",
    "KMeansDirections",
    "Krum",
    "L2Threshold",
    "LeaveOneOut",
    "MahalanobisThreshold",
    "Mean",
    "MultiKrum",
    "PerSampleStep",
    "PreviousGate",
    "RandomSkip",
    "Run",
    "SANDMask",
    "SignAgreement",
    "SoftGAF",
    "TopM",
    "TrainSettings",
    "Trainer",
    "TrimmedMean",
    "UserError",
    "Weighting",
    "Yoked",
    "aggregation",
    "build_rule",
    "calibrate",
    "cosine_distance",
    "data",
    "diagnose",
    "distribute",
    "from_torchjd",
    "gramian",
    "load_run",
    "metrics",
    "microbatch_gradients",
    "models",
    "per_sample_step",
    "predict_curve",
    "replay",
    "supervised",
    "train",
    "watch",
]


def __getattr__(name: str) -> Any:
    # The analyses bring pandas and more, which training loops need not wait for.
    if name in ("Diagnosis", "diagnose"):
        from gafscope.analyses import diagnose, diagnosis

        return diagnosis.Diagnosis if name == "Diagnosis" else diagnose.diagnose
    if name == "distribute":  # and this one FSDP
        from gafscope.distributed.distribute import distribute

        return distribute
    raise AttributeError(f"module 'gafscope' has no attribute {name!r}")
