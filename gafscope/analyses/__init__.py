"""Analyses: one question a file, settings in, table out. Nothing here draws."""

from gafscope.analyses.registry import ANALYSES, get_analysis
from gafscope.analyses.result import Analysis, Conclusion, Measured, Result

__all__ = ["ANALYSES", "Analysis", "Conclusion", "Measured", "Result", "get_analysis"]
