"""`python -m gafscope diagnose`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import final

import pandas as pd
from tyro.conf import OmitArgPrefixes

from gafscope.analyses.diagnose import diagnose
from gafscope.analyses.diagnosis import Diagnosis
from gafscope.cli.output import make_folder, print_table, print_text
from gafscope.cli.problem import Task, explained, load_problem
from gafscope.cli.settings import read_settings
from gafscope.errors import UserError
from gafscope.plots import save_figure
from gafscope.plots.diagnosis import plot_curve, plot_layers, plot_scores, plot_spectrum
from gafscope.records import atomic_write
from gafscope.trainer import TrainSettings
from gafscope.trainer.job import assemble
from gafscope.trainer.train import using_threads

_GIBIBYTE = 1 << 30
_SHOWN_LAYERS = 12
# Settings of training that also say how to diagnose.
_SHARED = ("microbatches", "microbatch_size", "seed", "threads", "run_dir", "progress")
_SIDES = ("accepted", "rejected")
_PURITY_COLUMNS = ["level", "first", "macrobatches", "accepted", "accepted_low", "accepted_high"]
_PURITY_COLUMNS += [f"flipped_{side}{end}" for side in _SIDES for end in ("", "_low", "_high")]
_SAMPLE_COLUMNS = ["rank", "sample", "label", "true_label", "flipped"]


def _plain() -> TrainSettings:
    return TrainSettings(rule="mean", steps=300, record_layers_every=0)


@final
@dataclass(frozen=True)
class DiagnoseSettings:
    """One page about a model's gradients: agreement, layers, batch size, threshold, samples.

    Without --problem a built-in network is first trained as the training settings say. Only
    --microbatch-size, --microbatches, --seed, --threads, --run-dir (where tables and figures go)
    and --progress apply to a --problem as well.
    """

    problem: str | None = None
    """Your own model: package.module:function, imported from the current folder; the function
    takes no arguments and returns (model, loss, data), and optionally {"true_targets": labels}
    as a fourth part."""
    false_accept: float = 0.05
    """Share of independent microbatches that the calibrated tau may let through."""
    samples: int = 2000
    """How many samples to rank; time and memory grow with the square."""
    top: int = 20
    """How many of the samples that disagree most to show."""
    memory: float = 4.0
    """GiB that gradients may take at a time."""
    train: OmitArgPrefixes[TrainSettings] = field(default_factory=_plain)
    """How to train the built-in network."""


def run_diagnose(arguments: Sequence[str]) -> None:
    """Diagnose a model, print the page and write tables, JSON and figures.

    Args:
        arguments: What follows `diagnose`.

    Raises:
        UserError: If a setting is wrong, or the user's own code fails.
    """
    settings = read_settings("diagnose", {"default": DiagnoseSettings()}, arguments)
    _check(settings)
    with using_threads(settings.train.threads):
        if settings.problem is None:
            task = _trained(settings.train)
            found = _diagnose(task, settings)
        else:
            task = _own(settings.problem, settings.train)
            with explained(f"Measuring the gradients of '{settings.problem}' failed"):
                found = _diagnose(task, settings)
    folder = Path(settings.train.run_dir or f"runs/diagnose-{task.name}")
    paths = _write(found, folder, settings.top)
    _print(found, settings.top)
    print_text("Tables and figures:")
    for path in paths:
        print(f"  {path}")


def _check(settings: DiagnoseSettings) -> None:
    for name, least in (("top", 0), ("memory", 0)):
        if not getattr(settings, name) > least:
            raise UserError(f"{name} must be positive, but is {getattr(settings, name)}.")


def _own(problem: str, train: TrainSettings) -> Task:
    plain = _plain()
    for setting in fields(plain):
        name = setting.name
        if name not in _SHARED and getattr(train, name) != getattr(plain, name):
            raise UserError(
                f"--{name.replace('_', '-')} says how to train a built-in network and does nothing "
                f"to a problem of your own ('{problem}'); leave it out."
            )
    return load_problem(problem)


def _trained(settings: TrainSettings) -> Task:
    job = assemble(replace(settings, run_dir=None), None)
    job.fit(settings.steps)
    split = job.dataset.train
    noise = f"-noise{settings.label_noise:g}" if settings.label_noise else ""
    name = f"{settings.data}{noise}-{settings.model}-{settings.rule}"
    return Task(
        name=f"{name}-step{settings.steps}-seed{settings.seed}",
        model=job.trainer.model,
        loss=job.trainer.loss,
        data=split.batch(),
        # Of text single bytes are wrong, not samples.
        true_targets=split.true_targets if split.flipped.any() and split.tasks is None else None,
    )


def _diagnose(task: Task, settings: DiagnoseSettings) -> Diagnosis:
    train = settings.train
    return diagnose(
        *(task.model, task.loss, task.data),
        microbatch_size=train.microbatch_size,
        microbatches=1 if train.microbatches == "samples" else train.microbatches,
        true_targets=task.true_targets,
        false_accept=settings.false_accept,
        samples=settings.samples,
        seed=train.seed,
        memory_budget=int(settings.memory * _GIBIBYTE),
        progress=train.progress,
    )


def _write(found: Diagnosis, folder: Path, top: int) -> list[Path]:
    make_folder(folder)
    page = "\n\n".join(f"{question}\n{text}" for question, text in found.answers.items())
    texts = {
        "summary.csv": found.summary.to_csv(index=False),
        "diagnosis.json": json.dumps(found.as_dict(top), indent=2, allow_nan=False) + "\n",
        "answers.txt": "\n\n".join([page, *found.notes]) + "\n",
    }
    if found.ranking is not None:
        texts["samples.csv"] = found.ranking.table.to_csv(index=False)
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())
    spectrum = found.spectrum
    figures = {
        "layers": plot_layers(found.layers),
        "curve": plot_curve(found.measured, found.curve.table, found.microbatch_size),
        "spectrum": plot_spectrum(spectrum.eigenvalues.numpy(), spectrum.edge),
    }
    if found.ranking is not None:
        figures["samples"] = plot_scores(found.ranking.table, found.ranking.ranked_by)
    paths = [folder / name for name in texts]
    for name, figure in figures.items():
        paths += save_figure(figure, folder / "figures", name)
    return paths


def _print(found: Diagnosis, top: int) -> None:
    print(
        f"\n{found.samples:,} samples, {found.calibration.rows} microbatches of "
        f"{found.microbatch_size}; 95% intervals in brackets"
    )
    for question, text in found.answers.items():
        print_text(question.upper())
        print_text(text)
    for heading, table in _tables(found, top).items():
        print(f"\n{heading}")
        print_table(table)
    for note in found.notes:
        print_text(note)


def _tables(found: Diagnosis, top: int) -> dict[str, pd.DataFrame]:
    some = len(found.layers) > _SHOWN_LAYERS
    heading = f"The {_SHOWN_LAYERS} layers that disagree most" if some else "Layers"
    tables = {
        heading: found.layers.head(_SHOWN_LAYERS),
        "Cosine against microbatch size": found.measured,
    }
    if found.separation is not None:
        tables["Finding flipped labels"] = found.separation
    if found.purity is not None:
        tables["Flipped samples (of 1) among those that GAF accepts and rejects"] = found.purity[
            _PURITY_COLUMNS
        ]
    if found.ranking is not None:
        known = [name for name in _SAMPLE_COLUMNS if name in found.ranking.table]
        columns = [*known, found.ranking.ranked_by, "loss"]
        tables["Samples that disagree most"] = found.ranking.table[columns].head(top)
    return tables
