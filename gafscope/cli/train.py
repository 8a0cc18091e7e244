"""`python -m gafscope train`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from gafscope.analyses.presets import as_published
from gafscope.cli.settings import read_settings
from gafscope.distributed.launch import launch
from gafscope.plots import save_figure
from gafscope.records import Run
from gafscope.records.acceptance import accepted_fraction
from gafscope.trainer import TrainSettings, train

PRESETS = {
    "quick": TrainSettings(),
    "paper": as_published(label_noise=0.0, tau=None, checkpoint_every=2000),
}


def run_train(arguments: Sequence[str]) -> None:
    """Train one model and print what came of it; under torchrun on all ranks together.

    Args:
        arguments: What follows `train`.

    Raises:
        UserError: If a setting is wrong, data are missing, or the run diverges.
    """
    with launch() as rank:
        settings = read_settings("train", PRESETS, arguments)
        if rank is not None:
            device = rank.connect(settings.device, settings.rank_timeout)
            settings = replace(settings, device=device)
        run = train(settings)
        if rank is None or rank.rank == 0:
            _show(run)


def _show(run: Run) -> None:
    figures = save_figure(run.plot(), run.folder, "run")
    _print_run(run)
    print(f"\nRun: {run.folder}\nFigure: {figures[0]}")


def _print_run(run: Run) -> None:
    summary, scalars = run.summary, run.scalars
    last = scalars.tail(100)
    span = f"last {len(last)} steps"
    unit = "samples" if run.config["microbatches"] == "samples" else "microbatches"
    rows = [
        ("ended", summary["status"]),
        ("steps", f"{summary['steps']:,}"),
        ("updates", f"{summary['updates']:,} ({summary['updates'] / summary['steps']:.1%})"),
        (f"{unit} accepted", f"{accepted_fraction(scalars, run.config).mean():.1%}"),
        (f"{unit} not finite", f"{scalars['not_finite'].map(len).sum():,}"),
        (f"train loss, {span}", _number(last["loss"].mean(), ".4f")),
        (f"train accuracy, {span}", _number(last["accuracy"].mean(), ".1%")),
        (f"cosine distance, {span}", _number(last["distance_mean"].mean(), ".4f")),
        ("validation accuracy", _number(summary.get("validation_accuracy"), ".1%")),
        ("test accuracy", _number(summary.get("test_accuracy"), ".1%")),
        ("best validation at step", str(summary.get("best_step", "-"))),
        ("test accuracy at best validation", _number(summary.get("best_test_accuracy"), ".1%")),
        ("seconds a step, median", f"{scalars['seconds'].median():.4f}"),
    ]
    print()
    for what, value in rows:
        print(f"{what:<34}{value:>16}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)
