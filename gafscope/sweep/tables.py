"""The tables of a sweep: one row a run, and one row a setting with its seeds grouped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gafscope.sweep.intervals import over_seeds
from gafscope.sweep.points import ERROR, RUNS, settled
from gafscope.sweep.queue import Queue
from gafscope.sweep.recipe import OBJECTIVES, Recipe

if TYPE_CHECKING:
    import pandas as pd

MEASURES = (
    "validation_accuracy",
    "best_validation_accuracy",
    "validation_loss",
    "best_validation_loss",
    "test_accuracy",
    "best_test_accuracy",
    "updates",
    "accepted",
)
"""The columns that `summary_table` averages over seeds."""


def trials_table(queue: Queue) -> pd.DataFrame:
    """Lay out what the storage holds of a sweep.

    Args:
        queue: The queue.

    Returns:
        One row a run of a settled trial, in the recipe's order: the settings that vary, `seed`,
        `trial` (its number in the storage), `error` (empty for a run that ended well), and of the
        run's summary `status`, `steps`, `updates`, losses and accuracies of 1, then `accepted`
        (share of the microbatches), `seconds` and `folder`.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for mine in queue.trials().values():
        if not settled(mine):
            continue
        ends = [t for t in mine if t.state.name == "COMPLETE"]
        # The first one counts; there is no second.
        trial = ends[0] if ends else [t for t in mine if ERROR in t.user_attrs][-1]
        values = queue.values_of(trial)
        runs = trial.user_attrs.get(RUNS) or [{"seed": seed} for seed in queue.seeds_of(trial)]
        known = {"trial": trial.number, "error": trial.user_attrs.get(ERROR, "")}
        rows += [{**values, "seed": run["seed"], **known, **run} for run in runs]
    table = pd.DataFrame(rows)
    keys = [key for key in queue.keys if key in table]
    return table[[*keys, *(column for column in table if column not in keys)]]


def summary_table(table: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Group the seeds of each setting.

    Args:
        table: What `trials_table` gave.
        recipe: The sweep.

    Returns:
        One row a setting, best first: the settings that vary, `seeds`, and of each measure its mean
        with the ends of Student's 95% interval. Runs that ended with an error are left out.
    """
    keys = [key for key in recipe.keys if key in table]
    measures = [recipe.objective, *(name for name in MEASURES if name != recipe.objective)]
    well = table[table["error"] == ""]
    known = [name for name in measures if name in well and well[name].notna().any()]
    if well.empty:
        return well[[*keys, *known]]
    summary = over_seeds(well, keys, known)
    ascending = OBJECTIVES[recipe.objective] == "minimize"
    return summary.sort_values(recipe.objective, ascending=ascending, kind="stable").reset_index(
        drop=True
    )
