"""How long an analysis will take, and how much disk, before it starts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from gafscope.trainer import TrainSettings, train
from gafscope.trainer.train import run_config

if TYPE_CHECKING:
    import pandas as pd

_STEPS, _WARM_UPS = 8, 3
# What does not change the time of a step or the size of its record.
_INDIFFERENT = (
    "seed",
    "sampling_seed",
    "label_noise",
    "tau",
    "steps",
    "lr",
    "momentum",
    "weight_decay",
    "max_updates",
    "yoked_to",
    "skip_rate",
    "warmup_updates",
    "validate_every",
    "checkpoint_every",
    "scheduler",
    "patience",
    "on_stall",
)


def estimate(plan: Sequence[TrainSettings]) -> pd.DataFrame:
    """Time a few steps of each kind of training and multiply.

    Validation between the steps is not counted.

    Args:
        plan: The trainings.

    Returns:
        One row a kind of training: `training`, `runs`, `steps` (of all), `hours` (one after the
        other, here) and `disk_MB`.

    Raises:
        UserError: As the trainings would: a setting is wrong, or data are missing.
    """
    import pandas as pd

    kinds: dict[str, list[TrainSettings]] = {}
    for settings in plan:
        config = run_config(replace(settings, yoked_to=None))
        key = str({name: value for name, value in config.items() if name not in _INDIFFERENT})
        kinds.setdefault(key, []).append(settings)
    rows: list[dict[str, Any]] = []
    for group in tqdm(kinds.values(), desc="timing a few steps of each", delay=2.0, leave=False):
        first, steps = group[0], sum(settings.steps for settings in group)
        seconds, per_step, fixed = _probe(first)
        rows.append(
            {
                "training": f"{first.model} on {first.data}, {first.rule}, {first.microbatches} x "
                f"{first.microbatch_size}",
                "runs": len(group),
                "steps": steps,
                "hours": steps * seconds / 3600,
                "disk_MB": (steps * per_step + len(group) * fixed) / 1e6,
            }
        )
    return pd.DataFrame(rows)


def _probe(settings: TrainSettings) -> tuple[float, float, float]:
    """Give seconds and bytes a step, and bytes a run."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            replace(
                settings,
                steps=_STEPS,
                run_dir=folder,
                yoked_to=None,
                max_updates=None,
                warmup_updates=0,
                validate_every=_STEPS,
                progress=False,
            )
        )
        scalars = (Path(folder) / "scalars.jsonl").stat().st_size
        everything = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    seconds = float(run.scalars["seconds"].iloc[_WARM_UPS:-1].median())
    return seconds, scalars / _STEPS, everything - scalars
