"""`python -m gafscope cost`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafscope.analyses.cost_peers import missing_peers
from gafscope.analyses.engine_cost import EngineCostSettings, measure_engine_cost
from gafscope.analyses.growth_cost import GrowthCostSettings, growth_slopes, measure_growth_cost
from gafscope.analyses.parts_cost import PartsCostSettings, measure_parts_cost
from gafscope.analyses.ranks_study import RanksCostSettings, check_ranks, predict_ranks
from gafscope.analyses.rules_cost import RulesCostSettings, measure_rules_cost, target_sentence
from gafscope.analyses.step_cost import StepCostSettings, measure_step_cost
from gafscope.analyses.sweep_cost import SweepCostSettings, measure_sweep_cost
from gafscope.analyses.watch_cost import VIEW_COLUMNS, WatchCostSettings, measure_watch_cost
from gafscope.cli.output import make_folder, print_table, print_text
from gafscope.cli.settings import read_settings, take
from gafscope.errors import unknown_name
from gafscope.live import unseen_panel
from gafscope.plots import save_figure
from gafscope.plots.costs import plot_engine_cost, plot_growth_cost, plot_ranks_cost
from gafscope.records import atomic_write

if TYPE_CHECKING:
    import pandas as pd

_MEGABYTE = 1e6
_RULE_COLUMNS = [
    "rule",
    "way",
    "decision_us",
    "seconds",
    "ratio_to_mean",
    "ratio_to_gaf",
    "stepped",
]
_ENGINE_COLUMNS = ["n", "k", "u", "method", "ratio", "ratio_low", "ratio_high", "floor"]


def run_cost(arguments: Sequence[str]) -> None:
    """Measure costs, print the tables and write them, with figures.

    Args:
        arguments: What follows `cost`; `--what engines`, the default, `growth`, `parts`,
            `ranks`, `rules`, `step`, `sweep` or `watch` is what is measured.

    Raises:
        UserError: If a setting is wrong.
    """
    rest, what = take("--what", list(arguments))
    what = "engines" if what is None else what
    if what not in _RUNS:
        raise unknown_name("cost", what, _RUNS)
    defaults, run = _RUNS[what]
    run(read_settings(f"cost --what {what}", {"default": defaults}, rest))


def _run_engines(settings: EngineCostSettings) -> None:
    path = _path(settings.output, "engines", settings.device)
    # A table after every network and size: hours of measuring are not lost to the last one.
    table = measure_engine_cost(settings, keep=lambda so_far: _write(so_far, path))
    written = [path, *_save(plot_engine_cost(table), path)]
    for model, part in table.groupby("model", sort=False):
        print(f"\n{model}, {part['parameters'].iloc[0]:,} parameters")
        part = part[part["method"] != part["base"]]
        shown = part[_ENGINE_COLUMNS].assign(
            memory_MB=part["memory"] / _MEGABYTE, memory_ratio=part["memory_ratio"]
        )
        print_table(shown.astype({"ratio": float, "floor": float}))
        _print_notes(part)
    print_text(
        "Ratios are medians over the turns, with quartiles in brackets, to one plain forward and "
        "backward of the same samples in one batch; those of the GAF step are to an averaging "
        "step. Memory is the peak beyond what was there before, its ratio likewise. The floor "
        "counts multiply-adds."
    )
    missing = missing_peers(settings.peers)
    if missing:
        print_text(f"Not installed, so not measured: {', '.join(missing)} (see --help).")
    _print_paths(written)


def _run_growth(settings: GrowthCostSettings) -> None:
    path = _path(settings.output, "growth", settings.device)
    table = measure_growth_cost(settings)
    slopes = growth_slopes(table)
    _write(table, path)
    slopes_path = path.with_stem(path.stem.replace("growth", "growth-slopes"))
    _write(slopes, slopes_path)
    written = [path, slopes_path, *_save(plot_growth_cost(table, slopes), path)]
    print(f"\n{settings.model}")
    print_table(slopes)
    _print_notes(table)
    print_text(
        "Slopes of log time over log size by least squares, with 95% intervals: 1 is "
        "proportional, 2 quadratic. Methods timed at fewer than 3 sizes have none."
    )
    _print_paths(written)


def _run_parts(settings: PartsCostSettings) -> None:
    table = measure_parts_cost(settings)
    path = Path(settings.output) / "parts.csv"
    _write(table, path)
    for (model, n), part in table.groupby(["model", "n"], sort=False):
        print(f"\n{model}, n = {n}")
        print_table(part.drop(columns=["model", "n"]))
    print_text(
        "Time and bytes are in units of the whole plain forward and backward of the same samples. "
        "Times are medians over the turns, divided as torch's profiler saw them."
    )
    print(f"\nTable: {path}")


def _run_ranks(settings: RanksCostSettings) -> None:
    predicted = predict_ranks(settings)
    folder = Path(settings.output)
    _write(predicted, folder / "ranks.csv")
    written = [folder / "ranks.csv", *_save(plot_ranks_cost(predicted), folder / "ranks.csv")]
    for (kind, numbers), part in predicted.groupby(["kind", "numbers"], sort=False):
        print(f"\n{kind}, {numbers:.3g} numbers (predicted)")
        print_table(part.drop(columns=["kind", "numbers"]))
    measured = check_ranks(settings)
    if len(measured):
        _write(measured, folder / "ranks-measured.csv")
        written.append(folder / "ranks-measured.csv")
        print("\nDDP on this machine's loopback (measured)")
        print_table(measured)
    print_text(
        "Bytes are what a rank sends a step; seconds what the backward does not hide; a step's "
        "ratio is to plain DDP or FSDP2 with forward and backward. 'group' ranks are averaged "
        "before they are compared. Memory is beyond plain; measured and predicted ratios of "
        "memory are in units of the model's numbers in float32."
    )
    _print_paths(written)


def _run_rules(settings: RulesCostSettings) -> None:
    table = measure_rules_cost(settings)
    path = _path(settings.output, "rules", settings.device)
    _write(table, path)
    for k, part in table.groupby("k", sort=False):
        print(f"\n{settings.model}, k = {k} microbatches of {settings.microbatch_size}")
        timed = part[part["note"] == ""]
        quarters = [f"{c}_{end}" for c in _RULE_COLUMNS[2:] for end in ("low", "high")]
        print_table(timed[[c for c in table.columns if c in (*_RULE_COLUMNS, *quarters)]])
        for rule, note in zip(part["rule"], part["note"], strict=True):
            if note:
                print(f"  {rule}: {note}")
    print_text(
        "Ratios are medians over the turns, with quartiles in brackets, to this trainer's own step "
        "by averaging and by GAF. 'decision us' are microseconds for the decision on inner "
        "products alone; 'stepped' is the share of the timed steps that were taken, a rejected one "
        f"being cheaper. {target_sentence(table)}"
    )
    if (shares := table["calibrating"].dropna()).size:
        print_text(
            f"CalibratedGAF's calibrations take {shares.max():.2%} beside all steps at most."
        )
    print(f"\nTable: {path}")


def _run_step(settings: StepCostSettings) -> None:
    table = measure_step_cost(settings)
    path = Path(settings.output) / "step.csv"
    _write(table, path)
    print_table(table)
    print_text(
        "Ratios are medians over the turns, with quartiles in brackets; 'ratio' is to a plain "
        "PyTorch loop that averages, 'ratio to mean' to this trainer's own averaging."
    )
    print(f"\nTable: {path}")


def _run_sweep(settings: SweepCostSettings) -> None:
    table = measure_sweep_cost(settings)
    path = _path(settings.output, "sweep", settings.device)
    _write(table, path)
    print_table(table)
    print_text(
        "Seconds are medians a trial; 'speedup' is the median over the turns, with quartiles in "
        "brackets, of the time one by one over the time together."
    )
    print(f"\nTable: {path}")


def _run_watch(settings: WatchCostSettings) -> None:
    shown = importlib.util.find_spec("ipywidgets") is not None
    table = measure_watch_cost(settings, unseen_panel if shown else None)
    path = _path(settings.output, "watch", settings.device)
    _write(table, path)
    for (model, parameters), part in table.groupby(["model", "parameters"], sort=False):
        print(f"\n{model}, {parameters:,} parameters")
        print_table(part.drop(columns=["model", "parameters", *VIEW_COLUMNS]))
        for share, loop, longest in part[[*VIEW_COLUMNS]].dropna().to_numpy():
            print(
                f"The live panel took {share:.2%} of the {loop:.3g} s of its loop, at most "
                f"{longest:.2g} s at once."
            )
    if not shown:
        print_text("Not installed, so not measured: ipywidgets, the live panel's.")
    print_text(
        "Ratios are medians over the turns, with quartiles in brackets, to the bare loop. The "
        "memory is the peak of a measured step beyond the bare loop's, rows on disk included, "
        "although their pages lie in a file."
    )
    print(f"\nTable: {path}")


_RUNS: Mapping[str, tuple[Any, Callable[[Any], None]]] = {
    "engines": (EngineCostSettings(), _run_engines),
    "growth": (GrowthCostSettings(), _run_growth),
    "parts": (PartsCostSettings(), _run_parts),
    "ranks": (RanksCostSettings(), _run_ranks),
    "rules": (RulesCostSettings(), _run_rules),
    "step": (StepCostSettings(), _run_step),
    "sweep": (SweepCostSettings(), _run_sweep),
    "watch": (WatchCostSettings(), _run_watch),
}


def _path(folder: str, name: str, device: str) -> Path:
    """Name the table; one of a GPU does not overwrite the CPU's."""
    return Path(folder) / (f"{name}.csv" if device == "cpu" else f"{name}-cuda.csv")


def _write(table: pd.DataFrame, path: Path) -> None:
    make_folder(path.parent)
    with atomic_write(path) as file:
        file.write(table.to_csv(index=False).encode())


def _save(figures: Mapping[str, Any], table: Path) -> list[Path]:
    suffix = "-cuda" if table.stem.endswith("-cuda") else ""
    folder = table.parent / "figures"
    return [p for name, f in figures.items() for p in save_figure(f, folder, name + suffix)]


def _print_notes(table: pd.DataFrame) -> None:
    """Print each note once, with the sizes that it holds for."""
    noted = table[table["note"] != ""]
    for (method, note), part in noted.groupby(["method", "note"], sort=False):
        sizes = dict.fromkeys(f"n={n} k={k}" for n, k in zip(part["n"], part["k"], strict=True))
        print(f"  {method} ({', '.join(sizes)}): {note}")


def _print_paths(paths: Sequence[Path]) -> None:
    print("\nTables and figures:")
    for path in paths:
        print(f"  {path}")
