"""Putting runs into the page's templates."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafscope.errors import UserError
from gafscope.plots.agreement import distance_colours, plot_layer_steps, plot_snapshots
from gafscope.plots.inline import inline_svg, page_colour
from gafscope.plots.panels import line_styles, plot_column, plot_run_panels, plot_runs_panels
from gafscope.records import Run, atomic_write
from gafscope.report.comparison import (
    compare,
    comparison_table,
    run_names,
    settings_table,
)
from gafscope.report.facts import LISTS, Facts, gather, readable
from gafscope.report.matrices import layer_distances, read_matrices
from gafscope.report.tables import clip, layer_table, numbers, pairs, step_table
from gafscope.report.templating import environment, source
from gafscope.report.verdict import judge

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_RUNS = 12
_MOST_OTHERS = 8
_COLOURS = 101
_DASHES = {"-": "", "--": "7 3", "-.": "8 3 2 3", ":": "2 3"}
_CAPTIONS = {
    "loss": "Loss",
    "accuracy": "Accuracy",
    "distance": "Cosine distance",
    "acceptance": "Acceptance and updates",
    "validation_loss": "Validation loss",
    "validation_accuracy": "Validation accuracy",
    "distance_mean": "Cosine distance",
    "accepted": "Accepted fraction",
    "updates": "Updates",
}
_IN_PANELS = {
    *("step", "loss", "accuracy", "validation_loss", "validation_accuracy", "accepted"),
    *("stepped", "distance_mean", *LISTS),
}
_DESCRIBED = ("model", "data", "rule", "tau", "microbatches", "microbatch_size", "optimizer", "lr")


def write_report(runs: Sequence[Run], path: Path) -> None:
    """Write one HTML page about a run, or about several side by side.

    The page needs nothing outside itself: style, script, figures and numbers are in it. Long
    runs are thinned, and the page says so.

    Args:
        runs: One run, or up to 12 different ones.
        path: The file to write; its folder must exist.

    Raises:
        UserError: No runs, too many, the same one twice, one without a step, a damaged file of
            matrices, or the system refused to write.
    """
    _check(runs)
    page = _render(runs)
    with atomic_write(path, "w") as file:
        file.write(page)


def _check(runs: Sequence[Run]) -> None:
    if not 1 <= len(runs) <= MOST_RUNS:
        raise UserError(
            f"A report shows 1 to {MOST_RUNS} runs, found {len(runs)}. Give fewer, or write "
            "several reports."
        )
    seen: set[Path] = set()
    for run in runs:
        if run.folder.resolve() in seen:
            raise UserError(f"The run in {run.folder} is given twice. Give each run once.")
        seen.add(run.folder.resolve())
        if run.scalars.empty:
            raise UserError(
                f"The run in {run.folder} has no steps yet, so there is nothing to report. "
                "Let it make some, or remove the folder if the run never started."
            )


def _render(runs: Sequence[Run]) -> str:
    named = dict(zip(run_names([run.folder for run in runs]), runs, strict=True))
    facts = {name: gather(run) for name, run in named.items()}
    sections = [
        _section(name, run, facts[name], f"r{place}", 1 / len(runs))
        for place, (name, run) in enumerate(named.items())
    ]
    script = source("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = f"Run {next(iter(named))}" if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    return (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            style=source("style.css"),
            script=script,
            script_hash=f"sha256-{digest}",
            colours=distance_colours(_COLOURS),
            comparison=_comparison(named, facts) if len(runs) > 1 else None,
            runs=sections,
        )
    )


def _section(name: str, run: Run, facts: Facts, key: str, room: float) -> dict[str, Any]:
    """Lay out what the page says about one run."""
    scalars = readable(run)
    matrices = read_matrices(run, scalars, room)
    layers, layer_count, layer_steps = layer_distances(run)
    others, constant = _others(scalars, key)
    settings = {"folder": str(run.folder), **run.provenance}
    return {
        "name": name,
        "key": key,
        "description": _description(run),
        "findings": judge(run, facts),
        "panels": _figures(plot_run_panels(scalars, run.config), key, facts),
        "others": others,
        "constant": constant,
        "matrices": matrices,
        "snapshots": _svg(plot_snapshots(matrices.snapshots), f"{key}-snapshots", _SNAPSHOTS)
        if matrices.steps
        else None,
        "layers": _svg(plot_layer_steps(layers), f"{key}-layers", _LAYERS) if layer_steps else None,
        "layer_table": layer_table(layers) if layer_steps else None,
        "layer_count": layer_count,
        "layers_shown": len(layers),
        "layer_steps": layer_steps,
        "layer_steps_shown": layers.shape[1],
        "tables": [
            pairs("Final numbers", numbers(run, facts), ["number", "value"]),
            step_table(scalars),
        ],
        "settings": pairs("Settings", run.config, ["setting", "value"]),
        "provenance": pairs("Provenance", settings, ["what", "value"]),
    }


_SNAPSHOTS = "Heat maps of the cosine distances at a few of the recorded steps."
_LAYERS = "Heat map of the mean cosine distance, layers downwards, recorded steps to the right."


def _comparison(runs: Mapping[str, Run], facts: Mapping[str, Facts]) -> dict[str, Any]:
    records = {name: (readable(run), run.config) for name, run in runs.items()}
    legend = [
        {"name": name, "colour": page_colour(look["color"]), "dash": _DASHES[look["linestyle"]]}
        for name, look in line_styles(runs).items()
    ]
    figures = plot_runs_panels(records)
    label = "Curves over the steps, one a run: {}."
    return {
        "findings": compare(runs, facts),
        "legend": legend,
        "panels": [
            {
                "caption": _CAPTIONS[name],
                "svg": _svg(figure, f"all-{name}", label.format(_CAPTIONS[name].lower())),
            }
            for name, figure in figures.items()
        ],
        "tables": [comparison_table(runs, facts), settings_table(runs)],
    }


def _figures(figures: Mapping[str, Figure], key: str, facts: Facts) -> list[dict[str, Any]]:
    trends = {"loss": facts.loss, "accuracy": facts.train_accuracy, "distance": facts.distance}
    panels = []
    for name, figure in figures.items():
        caption, trend = _CAPTIONS[name], trends.get(name)
        label = f"{caption} over {facts.steps:,} steps"
        if trend is not None:
            label += f", from {trend.first:.3g} at the start to {trend.last:.3g} at the end"
        panels.append({"caption": caption, "svg": _svg(figure, f"{key}-{name}", f"{label}.")})
    return panels


def _others(scalars: pd.DataFrame, key: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Draw the columns that no panel shows; of those that never change give the value."""
    panels: list[dict[str, Any]] = []
    constant: dict[str, str] = {}
    for name in scalars.columns:
        values = scalars[name].dropna() if name not in _IN_PANELS else None
        if values is None or values.empty:
            continue
        title = clip(name)
        if values.nunique() == 1:
            constant[title] = f"{values.iloc[0]:.4g}"
        elif len(panels) < _MOST_OTHERS:
            svg = _svg(plot_column(scalars, name), f"{key}-other{len(panels)}", f"{title} by step.")
            panels.append({"caption": title, "svg": svg})
    return panels, constant


def _description(run: Run) -> str:
    known = {name: run.config.get(name) for name in _DESCRIBED}
    known["seed"] = run.provenance.get("seed")
    return "; ".join(
        f"{name.replace('_', ' ')} {clip(v)}" for name, v in known.items() if v is not None
    )


def _svg(figure: Figure, name: str, label: str) -> Any:
    from markupsafe import Markup

    return Markup(inline_svg(figure, name, label))
