"""Means over seeds with their intervals, which sweeps have as well."""

from gafscope.sweep.intervals import Interval, mean_interval, over_seeds, paired_difference

__all__ = ["Interval", "mean_interval", "over_seeds", "paired_difference"]
