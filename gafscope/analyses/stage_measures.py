"""A network measured at stages of its training; each stage is kept as soon as it is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

import numpy as np
import torch
from torch import Tensor

from gafscope.analyses.sample_scores import ALL_SCORES, score_samples
from gafscope.analyses.separation import auroc
from gafscope.analyses.trials import Trial
from gafscope.data import Split
from gafscope.errors import UserError
from gafscope.gradients import microbatch_gradients
from gafscope.metrics import table
from gafscope.records import atomic_write
from gafscope.trainer.job import Job, assemble
from gafscope.trainer.train import run_config, using_threads

if TYPE_CHECKING:
    import pandas as pd

METRIC, SCORE = "metric", "score"


class StageMeasure(Protocol):
    """What is measured at a stage; a frozen dataclass, whose fields are kept beside the results."""

    def __call__(self, job: Job, step: int, seed: int, /) -> pd.DataFrame:
        """Measure a network, which must be left as it was.

        Args:
            job: The network, its data and its loss; BatchNorm and dropout as in training.
            step: Steps made.
            seed: The trial's seed.
        """
        ...


@final
@dataclass(frozen=True)
class Measuring:
    """Measure all metrics and all scores of single samples.

    Attributes:
        rows: k, microbatches whose gradients the metrics look at.
        row_size: u, samples in each.
        samples: Training samples that are scored one by one.
    """

    rows: int
    row_size: int
    samples: int

    def check(self) -> None:
        """Refuse sizes that nothing can be measured with.

        Raises:
            UserError: Names the size and the least value.
        """
        for name, least in (("rows", 3), ("row_size", 1), ("samples", 4)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"{name} must be at least {least}, but is {value}; raise it.")

    def __call__(self, job: Job, step: int, seed: int, /) -> pd.DataFrame:
        """Give `kind` ("metric" or "score"), `name`, `value`, `low` and `high`.

        The value of a score is its AUROC for flipped labels.
        """
        import pandas as pd

        model, loss, train = job.trainer.model, job.trainer.loss, job.dataset.train
        batch = train.batch(draw_rows(train, self.rows, self.row_size, seed))
        rows = microbatch_gradients(model, loss, batch, microbatches=self.rows, seed=seed)
        found = table(rows, microbatch_size=self.row_size).rename(columns={"metric": "name"})
        parts = [found[["name", "value", "low", "high"]].assign(kind=METRIC)]
        if 0 < int(train.flipped.sum()) < len(train):
            scores = score_samples(
                model, loss, train.batch(), train.true_targets, samples=self.samples, seed=seed
            )
            found = [(name, auroc(scores[name], scores["flipped"])) for name in ALL_SCORES]
            lines = [(name, area.value, area.low, area.high) for name, area in found]
            columns = ["name", "value", "low", "high"]
            parts.append(pd.DataFrame(lines, columns=columns).assign(kind=SCORE))
        return pd.concat(parts, ignore_index=True)


def stage_steps(steps: int, stages: int) -> list[int]:
    """Choose when to measure: untrained, and at logarithmically spaced steps.

    Args:
        steps: Steps of the training.
        stages: Stages beside the untrained one, at least 2; fewer where steps coincide.

    Returns:
        Steps that have been made, ascending from 0 to `steps`.

    Raises:
        UserError: If there are fewer than 2 stages.

    Example:
        >>> stage_steps(1000, 4)
        [0, 1, 10, 100, 1000]
    """
    if stages < 2:
        raise UserError(f"stages must be at least 2, but is {stages}; raise it.")
    return sorted({0, *np.geomspace(1, steps, stages).round().astype(int).tolist()})


def measure_stages(
    trial: Trial, measuring: StageMeasure, stages: list[int], root: Path
) -> Iterator[pd.DataFrame]:
    """Train stage by stage and measure at each; what is in the folder already is read.

    Args:
        trial: What to train.
        measuring: What to measure.
        stages: Steps, ascending from 0.
        root: The study's folder.

    Yields:
        What was measured at each stage, with its `step`.

    Raises:
        UserError: If the folder holds measurements with other settings, or training fails.
    """
    import pandas as pd

    folder = trial.folder(root)
    kept = root / "measures" / folder.name
    _check_settings(kept / "settings.json", trial, measuring)
    for step in stages:
        path = kept / f"step{step:08d}.csv"
        if not path.exists():
            with using_threads(trial.settings.threads):
                job = _trained(trial, step, folder)
                job.trainer.model.train()
                found = measuring(job, step, trial.seed)
            with atomic_write(path) as file:
                file.write(found.to_csv(index=False).encode())
        yield pd.read_csv(path).assign(step=step)


def draw_rows(split: Split, rows: int, row_size: int, seed: int) -> Tensor:
    """Draw disjoint microbatches, the same ones at every stage, which differ by the network alone.

    Args:
        split: The samples.
        rows: How many microbatches.
        row_size: Samples in each.
        seed: Draws them.

    Returns:
        (rows * row_size,) indices, microbatch after microbatch.

    Raises:
        UserError: If there are fewer samples.
    """
    needed = rows * row_size
    if needed > len(split):
        raise UserError(
            f"rows x row_size = {rows} x {row_size} = {needed} samples, but there are "
            f"{len(split)} to train on; lower rows or row_size."
        )
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:needed]


def _check_settings(path: Path, trial: Trial, measuring: StageMeasure) -> None:
    """Keep the settings with the measurements, and refuse to mix those of two."""
    config = {name: value for name, value in run_config(trial.settings).items() if name != "steps"}
    text = json.dumps({"measuring": vars(measuring), "train": config}, indent=2, sort_keys=True)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot create the folder {path.parent}: {error.strerror}. Choose another "
                "--run-dir."
            ) from error
        with atomic_write(path, "w") as file:
            file.write(text)
    elif path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{path.parent} holds measurements that were made with other settings (see "
            "settings.json there); use the same settings, or another --run-dir."
        )


def _trained(trial: Trial, step: int, folder: Path) -> Job:
    if step == 0:
        return assemble(trial.settings, None)
    settings = replace(trial.settings, steps=step)
    job = assemble(settings, folder, run_config(settings), f"{trial.rule}, seed {trial.seed}")
    job.fit(step)
    return job
