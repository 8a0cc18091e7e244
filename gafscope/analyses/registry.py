"""The list of analyses."""

from __future__ import annotations

from gafscope.analyses.calibrated_tau import CALIBRATED_TAU
from gafscope.analyses.demo import DEMO
from gafscope.analyses.metrics_study import METRICS_STUDY
from gafscope.analyses.noise_sweep import NOISE_SWEEP
from gafscope.analyses.result import Analysis
from gafscope.analyses.rules_study import RULES_STUDY
from gafscope.analyses.white_noise import WHITE_NOISE
from gafscope.errors import unknown_name

ANALYSES: dict[str, Analysis] = {
    analysis.name: analysis
    for analysis in (
        DEMO,
        WHITE_NOISE,
        NOISE_SWEEP,
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
