"""The folder of an analysis: what was measured is kept, and everything shown comes from there.

`runs.csv` and `curves.csv` hold the measurements, `recipe.yaml` the settings, `measured.json` says
that they belong together. Table, verdict and figures are made of these alone, so that they can be
made again without training.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gafscope.analyses import Analysis, Measured, Result
from gafscope.cli import recipe
from gafscope.cli.settings import read_settings
from gafscope.errors import UserError
from gafscope.plots import save_figure
from gafscope.plots.studies import FIGURES
from gafscope.records import atomic_write

if TYPE_CHECKING:
    import pandas as pd

RUNS, CURVES, SUMMARY, VERDICT = "runs.csv", "curves.csv", "summary.csv", "verdict.txt"
_MEASURED = "measured.json"


def keep(analysis: Analysis, settings: Any, measured: Measured) -> None:
    """Write down what was measured.

    Args:
        analysis: The analysis.
        settings: Its settings.
        measured: What it measured.

    Raises:
        UserError: If something cannot be written.
    """
    folder = measured.folder
    _write(folder / RUNS, measured.runs.to_csv(index=False))
    _write(folder / CURVES, measured.curves.to_csv(index=False, float_format="%.5g"))
    _write(folder / recipe.NAME, recipe.recipe_text(analysis.name, settings))
    _write(folder / _MEASURED, json.dumps(_marks(analysis, folder), indent=2) + "\n")


def conclude(analysis: Analysis, folder: Path) -> Result:
    """Read an analysis' folder and conclude from it.

    Args:
        analysis: The analysis.
        folder: What `keep` filled.

    Returns:
        The outcome.

    Raises:
        UserError: If a file is missing or damaged, or they do not belong together.
    """
    _check(analysis, folder)
    config = str(folder / recipe.NAME)
    settings = read_settings(analysis.name, analysis.presets, ["--config", config])
    runs, curves = _read(folder / RUNS), _read(folder / CURVES)
    if runs.empty:
        raise UserError(f"{folder / RUNS} has no rows, so there is nothing to draw; measure anew.")
    conclusion = analysis.conclude(settings, runs, curves)
    return Result(conclusion.table, curves, conclusion.verdict, folder, conclusion.shown)


def write_conclusion(analysis: Analysis, result: Result) -> list[Path]:
    """Write the table, the verdict and the figures.

    Args:
        analysis: The analysis.
        result: From `conclude`.

    Returns:
        The files.

    Raises:
        UserError: If one cannot be written.
    """
    folder = result.folder
    _write(folder / SUMMARY, result.table.to_csv(index=False))
    _write(folder / VERDICT, f"{result.verdict}\n")
    written = [folder / SUMMARY, folder / VERDICT]
    for name, figure in FIGURES[analysis.name](result.table, result.curves).items():
        written += save_figure(figure, folder / "figures", name)
    return written


def _marks(analysis: Analysis, folder: Path) -> dict[str, str]:
    return {
        "analysis": analysis.name,
        "recipe": recipe.recipe_digest(folder / recipe.NAME),
        **{name: _digest(folder / name) for name in (RUNS, CURVES)},
    }


def _check(analysis: Analysis, folder: Path) -> None:
    path = folder / _MEASURED
    missing = [
        name for name in (RUNS, CURVES, recipe.NAME, _MEASURED) if not (folder / name).is_file()
    ]
    if missing:
        raise UserError(
            f"{folder} does not hold a measured analysis: {', '.join(missing)} is missing. Run "
            f"`python -m gafscope {analysis.name} --run-dir {folder}` to measure it."
        )
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); measure the analysis anew.") from error
    for name, found in _marks(analysis, folder).items():
        if kept.get(name) == found:
            continue
        if name == "analysis":
            raise UserError(
                f"{folder} holds the analysis '{kept.get(name)}', not '{analysis.name}'; name "
                "that one, or another folder."
            )
        changed = recipe.NAME if name == "recipe" else name
        raise UserError(
            f"{folder / changed} is not the one that {SUMMARY} there was made with: it was changed "
            "since, or belongs to another run. Restore it, or measure the analysis anew."
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path)
    except ValueError as error:
        raise UserError(
            f"{path} is empty or no table ({' '.join(str(error).split())}); measure anew."
        ) from error


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
