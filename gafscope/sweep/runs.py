"""Training many settings: those of one shape together where that is faster, others one by one."""

from __future__ import annotations

from collections.abc import Sequence

from gafscope.errors import UserError
from gafscope.records import Run
from gafscope.sweep.batched import batch_key, train_batched
from gafscope.trainer import TrainSettings, train

Outcome = Run | Exception
"""A run, or why there is none."""


def run_settings(settings: Sequence[TrainSettings], *, batch: int = 32) -> list[Run]:
    """Train every setting, or take the run that is in its folder already.

    Args:
        settings: The settings, each with a `run_dir` of its own. One may be yoked to an earlier
            one.
        batch: At most so many are trained together; 1 for never.

    Returns:
        Their runs, in the same order, each as `train` gives it.

    Raises:
        UserError: If a setting is wrong, data are missing, or a run diverges; all others are
            trained before.
    """
    runs: list[Run] = []
    for outcome in outcomes_of(settings, batch):
        if isinstance(outcome, Exception):
            raise outcome
        runs.append(outcome)
    return runs


def outcomes_of(settings: Sequence[TrainSettings], batch: int) -> list[Outcome]:
    """Train every setting, also those that come after one that cannot be trained.

    Args:
        settings: As in `run_settings`.
        batch: As in `run_settings`.

    Returns:
        A run or an error for each.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after checkpoints were written.
    """
    outcomes: dict[int, Outcome] = {}
    for members in _groups(settings, batch):
        left = members
        while len(left) > 1:
            done = train_batched([settings[i] for i in left], f"{len(left)} trials together")
            if not done:
                break  # one by one is faster
            outcomes |= dict(zip(left, done, strict=False))
            left = left[len(done) :]
        for i in left:
            outcomes[i] = _train_one(settings[i])
    return [outcomes[i] for i in range(len(settings))]


def _groups(settings: Sequence[TrainSettings], batch: int) -> list[list[int]]:
    """Give the indices of settings that can be trained together, in the order of the first."""
    groups: list[list[int]] = []
    open_groups: dict[str, list[int]] = {}
    for i, one in enumerate(settings):
        key = batch_key(one)
        group = None if key is None else open_groups.get(key)
        if key is not None and group is not None and len(group) < batch:
            group.append(i)
            continue
        groups.append([i])
        if key is not None:
            open_groups[key] = groups[-1]
    return groups


def _train_one(settings: TrainSettings) -> Outcome:
    try:
        return train(settings)
    except (UserError, RuntimeError, MemoryError) as error:
        return error
