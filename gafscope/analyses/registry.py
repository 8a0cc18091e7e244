"""The list of analyses."""

from __future__ import annotations

from gafscope.analyses.adversarial import ADVERSARIAL
from gafscope.analyses.batch_size_curve import BATCH_SIZE_CURVE
from gafscope.analyses.calibrated_tau import CALIBRATED_TAU
from gafscope.analyses.composition import COMPOSITION
from gafscope.analyses.demo import DEMO
from gafscope.analyses.dynamics import DYNAMICS
from gafscope.analyses.illustration import ILLUSTRATION
from gafscope.analyses.language import LANGUAGE
from gafscope.analyses.layers import LAYERS
from gafscope.analyses.long_run import LONG_RUN
from gafscope.analyses.metrics_study import METRICS_STUDY
from gafscope.analyses.microbatch_count import MICROBATCH_COUNT
from gafscope.analyses.microbatch_sweep import MICROBATCH_SWEEP
from gafscope.analyses.noise_sweep import NOISE_SWEEP
from gafscope.analyses.optimizers import OPTIMIZERS
from gafscope.analyses.order import ORDER
from gafscope.analyses.purity_study import PURITY
from gafscope.analyses.result import Analysis
from gafscope.analyses.rules_study import RULES_STUDY
from gafscope.analyses.threshold_sweep import THRESHOLD_SWEEP
from gafscope.analyses.white_noise import WHITE_NOISE
from gafscope.errors import unknown_name

ANALYSES: dict[str, Analysis] = {
    analysis.name: analysis
    for analysis in (
        DEMO,
        WHITE_NOISE,
        NOISE_SWEEP,
        THRESHOLD_SWEEP,
        LONG_RUN,
        MICROBATCH_SWEEP,
        MICROBATCH_COUNT,
        OPTIMIZERS,
        BATCH_SIZE_CURVE,
        DYNAMICS,
        ILLUSTRATION,
        LAYERS,
        COMPOSITION,
        LANGUAGE,
        ORDER,
        PURITY,
        ADVERSARIAL,
        CALIBRATED_TAU,
        METRICS_STUDY,
        RULES_STUDY,
    )
}


def get_analysis(name: str) -> Analysis:
    """Find an analysis.

    Args:
        name: Its name.

    Returns:
        The analysis.

    Raises:
        UserError: If there is none of that name.

    Example:
        >>> get_analysis("white-noise").name
        'white-noise'
    """
    if name not in ANALYSES:
        raise unknown_name("analysis", name, ANALYSES)
    return ANALYSES[name]
