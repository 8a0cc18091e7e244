"""`python -m gafscope sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import tyro
import yaml

from gafscope.cli.output import print_table, print_text
from gafscope.cli.settings import read_yaml
from gafscope.cli.train import PRESETS
from gafscope.errors import UserError
from gafscope.plots import save_figure
from gafscope.plots.sweep import plot_sweep
from gafscope.records import atomic_write
from gafscope.sweep import Recipe, read_recipe, run_sweep, summary_table

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20


@final
@dataclass(frozen=True)
class SweepSettings:
    """Train over a grid, or a search, of any settings and seeds; each trial exactly once.

    A recipe is a YAML file. `settings` are those of `train`, on top of `preset`; `grid` holds lists
    of values, e.g. {tau: [0.6, 0.75], label_noise: [0, 0.4]}, or is a list of such grids; `search`
    holds sampler (tpe, random, qmc or gp), trials and space (lists, or ranges {low, high, log}).
    Further keys: name, seeds (how many, or a list), objective (validation_accuracy, ...), folder,
    and those below. The same command goes on with a sweep that was interrupted or killed; the same
    command on another machine, with a storage that both reach, shares the work.
    """

    recipe: tyro.conf.Positional[str]
    """The recipe's file."""
    workers: int | None = None
    """Worker processes on this machine; as many as there are processor cores when not given."""
    device: tuple[str, ...] = ()
    """Devices that the workers take in turn, e.g. cuda:0 cuda:1."""
    storage: str | None = None
    """Address of the database that queues the trials: sqlite:///FILE, postgresql://...; a file in
    the sweep's folder when not given."""
    join: bool = False
    """Only add this machine's workers to a sweep that another one has begun."""
    slurm: tuple[str, ...] | None = None
    """Run the workers as Slurm jobs with these options, e.g. partition=gpu time=120 gpus_per_node=1
    (time in minutes)."""
    retry_failed: bool = False
    """Run trials again that ended with an error."""
    progress: bool = True
    """Show a progress bar."""


def run_sweep_command(arguments: Sequence[str]) -> None:
    """Run a sweep, or what is left of it, and write tables and a figure.

    Args:
        arguments: What follows `sweep`.

    Raises:
        UserError: If the recipe or a setting is wrong, the storage cannot be used, or no trial
            ended well.
    """
    settings = tyro.cli(SweepSettings, prog="python -m gafscope sweep", args=list(arguments))
    recipe = _recipe(settings)
    print(
        f"Sweep {recipe.name}: {_count(recipe)} in {recipe.folder}, "
        f"{recipe.worker_count} {'jobs' if recipe.slurm else 'workers'}"
    )
    table = run_sweep(
        recipe, join=settings.join, retry_failed=settings.retry_failed, progress=settings.progress
    )
    if settings.join:
        print_text("The sweep has ended; the command that began it writes its tables.")
        return
    _report(recipe, table)


def _recipe(settings: SweepSettings) -> Recipe:
    path = Path(settings.recipe)
    values = dict(read_yaml(path))
    given: dict[str, Any] = {
        "workers": settings.workers,
        "devices": list(settings.device) or None,
        "storage": settings.storage,
        "slurm": None if settings.slurm is None else _slurm(settings.slurm),
    }
    values |= {key: value for key, value in given.items() if value is not None}
    return read_recipe(values, path, PRESETS)


def _slurm(words: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {"cluster": "slurm"}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(
                f"--slurm takes options as name=value, but found '{word}'; write partition=gpu."
            )
        options[name] = yaml.safe_load(value)
    return options


def _count(recipe: Recipe) -> str:
    seeds = f"{len(recipe.seeds)} seed{'s' * (len(recipe.seeds) > 1)}"
    if recipe.search is not None:
        return f"{recipe.search.trials} draws by {recipe.search.sampler}, {seeds} each"
    return f"{len(recipe.points)} settings, {seeds} each"


def _report(recipe: Recipe, table: pd.DataFrame) -> None:
    """Write and print what came of it."""
    folder, summary = Path(recipe.folder), summary_table(table, recipe)
    written = [_write(table, folder / "table.csv"), _write(summary, folder / "summary.csv")]
    failed = table[table["error"] != ""]
    if summary.empty:
        raise UserError(
            f"No trial of the sweep ended well. The first one: {table['error'].iloc[0]}"
        )
    figure = plot_sweep(summary, recipe.keys, recipe.objective, recipe.search is not None)
    written += save_figure(figure, folder / "figures", "sweep")
    print()
    print_table(_shown(summary.head(_SHOWN), recipe))
    if len(summary) > _SHOWN:
        print(f"... and {len(summary) - _SHOWN} more")
    print_text(_sentence(recipe, summary, len(table), len(failed)))
    if len(failed):
        print_text(f"The first error: {failed['error'].iloc[0]}")
    print_text("Intervals are 95% over seeds. Trials are in the folder trials; tables and figure:")
    for path in written:
        print(f"  {path}")


def _shown(summary: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    measures = dict.fromkeys([recipe.objective, "test_accuracy", "updates", "accepted"])
    known = [name for name in measures if name in summary]
    wanted = [*(k for k in recipe.keys if k in summary), "seeds"]
    wanted += [f"{name}{end}" for name in known for end in ("", "_low", "_high")]
    shown = summary[wanted].copy()
    for key in wanted[: wanted.index("seeds")]:
        shown[key] = [_value(value) for value in shown[key]]
    return shown


def _sentence(recipe: Recipe, summary: pd.DataFrame, runs: int, failed: int) -> str:
    best, measure = summary.iloc[0], recipe.objective
    percent = 100 if measure.endswith("accuracy") else 1
    given = {key: _value(best[key]) for key in recipe.keys if key in best}
    setting = ", ".join(f"{key} {value}" for key, value in given.items() if value != "-")
    mean, low, high = (percent * float(best[f"{measure}{end}"]) for end in ("", "_low", "_high"))
    interval = f" [{low:.4g}, {high:.4g}]" if low == low else ""
    unit = "%" if percent == 100 else ""
    ended = f"; {failed} of {runs} runs ended with an error" if failed else f", {runs} runs in all"
    return (
        f"By {measure.replace('_', ' ')}, mean over {int(best['seeds'])} seed(s), the best "
        f"of {len(summary)} settings is {setting}: {mean:.4g}{unit}{interval}{ended}. It was "
        "chosen among all of them, so on new seeds expect a little less."
    )


def _value(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write(table: pd.DataFrame, path: Path) -> Path:
    with atomic_write(path) as file:
        file.write(table.to_csv(index=False).encode())
    return path
