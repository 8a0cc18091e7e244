"""What training the trials of a sweep together saves over training them one after another."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from tqdm import tqdm

from gafscope.analyses.cost_turns import check_turns, quartiles, take_turns
from gafscope.analyses.presets import noisy_digits
from gafscope.errors import UserError
from gafscope.sweep import can_batch
from gafscope.sweep.runs import run_settings
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

ALONE, TOGETHER = "one by one", "together"


@final
@dataclass(frozen=True)
class SweepCostSettings:
    """Time whole trials of the digits MLP that differ in their seed, both ways, taking turns.

    A trial is timed with all that it has: reading the data, its record, checkpoints, validations
    and its summary.
    """

    trials: tuple[int, ...] = (8, 32)
    """Numbers of trials, one table row each."""
    steps: int = 1500
    """Steps of a trial."""
    repeats: int = 5
    """Timed turns."""
    threads: int = 1
    """Processor threads."""
    device: str = "cpu"
    """cpu or cuda."""
    output: str = "runs/cost"
    """Folder of the table."""


def measure_sweep_cost(settings: SweepCostSettings) -> pd.DataFrame:
    """Time trials one by one and together.

    Args:
        settings: The settings.

    Returns:
        One row a number of trials: `trials`, `steps`, `alone_seconds` and `together_seconds` a
        trial (medians over the turns), `speedup` (median over the turns of their ratio) with its
        quartiles.

    Raises:
        UserError: If a setting is wrong, or such trials cannot be trained together.
    """
    import pandas as pd

    check_turns(settings.repeats, 1, settings.device, settings.threads)
    if not settings.trials or min(settings.trials) < 2 or settings.steps < 1:
        raise UserError(
            "cost --what sweep needs trials of at least 2 and steps of at least 1, but found "
            f"trials {settings.trials} and steps {settings.steps}."
        )
    return pd.DataFrame([_measure(settings, count) for count in settings.trials])


def _measure(settings: SweepCostSettings, count: int) -> dict[str, float]:
    trials = [
        noisy_digits(
            steps=settings.steps,
            seed=seed,
            threads=settings.threads,
            device=settings.device,
            progress=False,
        )
        for seed in range(count)
    ]
    if not can_batch(trials[0]):
        raise UserError("These trials cannot be trained together on this device; use another.")
    calls = {ALONE: partial(_train, trials, 1), TOGETHER: partial(_train, trials, count)}
    _train(
        [replace(one, steps=1) for one in trials], count
    )  # compiles and reads for the first time
    with tqdm(total=settings.repeats, desc=f"cost, {count} trials", delay=2.0, leave=False) as bar:
        seconds = take_turns(calls, settings.repeats, settings.device, bar.update)
    each = {name: float(np.median(times)) / count for name, times in seconds.items()}
    return {
        "trials": count,
        "steps": settings.steps,
        "alone_seconds": each[ALONE],
        "together_seconds": each[TOGETHER],
        **quartiles("speedup", seconds[ALONE] / seconds[TOGETHER]),
    }


def _train(trials: Sequence[TrainSettings], batch: int) -> None:
    root = Path(tempfile.mkdtemp(prefix="gafscope-cost-"))
    try:
        placed = [replace(one, run_dir=str(root / str(one.seed))) for one in trials]
        run_settings(placed, batch=batch)
    finally:
        shutil.rmtree(root)
