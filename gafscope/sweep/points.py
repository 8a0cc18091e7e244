"""Points, what must be run once each, and how far a point's trials are.

A point is a setting with its seed (grid), or the n-th draw with all seeds (search). Its trials are
given oldest first.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gafscope.sweep.recipe import Recipe

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# What a trial carries in the storage: its point, its worker, why it failed, the numbers of its
# runs, and that nobody died of it.
POINT, WORKER, ERROR, RUNS, LET_GO = "point", "worker", "error", "runs", "let_go"
MOST_DEATHS = 10
"""A trial whose worker dies so often is what kills it."""


def points_of(recipe: Recipe) -> dict[str, tuple[dict[str, Any], int] | None]:
    """Name every point of a sweep.

    Args:
        recipe: The sweep.

    Returns:
        Name -> (setting, seed); None where the setting is drawn when it is run.
    """
    if recipe.search is not None:
        return {f"draw {number}": None for number in range(recipe.search.trials)}
    return {
        json.dumps([point, seed], sort_keys=True): (point, seed)
        for point in recipe.points
        for seed in recipe.seeds
    }


def unfinished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Give the trials that wait or run.

    Args:
        trials: Those of one point, oldest first.
    """
    return [trial for trial in trials if not trial.state.is_finished()]


def claimable(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Give the trial of a point that may be run now: its oldest one, if that waits.

    Args:
        trials: Those of one point, oldest first.
    """
    oldest = next(iter(unfinished(trials)), None)
    waits = oldest is not None and oldest.state.name == "WAITING"
    return oldest if waits and not settled(trials) else None


def settled(trials: list[FrozenTrial]) -> bool:
    """Tell whether a point is done: one of its trials is complete, or ended with an error.

    Args:
        trials: Those of one point, oldest first.
    """
    if any(trial.state.name == "COMPLETE" for trial in trials):
        return True
    return failed(trials) and not unfinished(trials)


def failed(trials: list[FrozenTrial]) -> bool:
    """Tell whether a point's last trial that ran to an end, ended with an error.

    Args:
        trials: Those of one point, oldest first.
    """
    ends = [t for t in trials if t.state.name == "COMPLETE" or ERROR in t.user_attrs]
    return bool(ends) and ends[-1].state.name != "COMPLETE"
