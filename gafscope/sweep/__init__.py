"""Sweeps: many training runs over settings and seeds, by many workers, each run exactly once."""

from gafscope.sweep.batched import can_batch
from gafscope.sweep.recipe import Recipe, read_recipe
from gafscope.sweep.runs import run_settings
from gafscope.sweep.sweep import run_sweep
from gafscope.sweep.tables import summary_table, trials_table

__all__ = [
    "Recipe",
    "can_batch",
    "read_recipe",
    "run_settings",
    "run_sweep",
    "summary_table",
    "trials_table",
]
