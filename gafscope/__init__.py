"""See, use and check gradient agreement in PyTorch models.

The Gramian of k micro-gradients, `K[i, j] = <g_i, g_j>`, tells whether they agree; rules such as
GAF decide on it which of them to follow; the trainer and its controls check what follows.
"""

from gafscope import data, models
from gafscope.aggregation import (
    GAF,
    Decision,
    HalvingGAF,
    Mean,
    PerSampleStep,
    RandomSkip,
    Weighting,
    Yoked,
    per_sample_step,
)
from gafscope.errors import UserError
from gafscope.geometry import cosine_distance
from gafscope.gradients import GradientRows, Gramian, gramian, microbatch_gradients, supervised
from gafscope.records import Run, load_run
from gafscope.trainer import Trainer, TrainSettings, train

__version__ = "0.1.0"

__all__ = [
    "GAF",
    "Decision",
    "GradientRows",
    "Gramian",
    "HalvingGAF",
    "Mean",
    "PerSampleStep",
    "RandomSkip",
    "Run",
    "TrainSettings",
    "Trainer",
    "UserError",
    "Weighting",
    "Yoked",
    "cosine_distance",
    "data",
    "gramian",
    "load_run",
    "microbatch_gradients",
    "models",
    "per_sample_step",
    "supervised",
    "train",
]
