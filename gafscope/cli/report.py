"""`python -m gafscope report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import tyro

from gafscope.cli.output import make_folder
from gafscope.errors import UserError
from gafscope.records import load_run
from gafscope.report import write_report

_SEVERAL = Path("runs/report.html")


@final
@dataclass(frozen=True)
class ReportSettings:
    """Write one HTML page about a run, or about several side by side.

    The page is one file that loads nothing from anywhere else.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of the runs, as --run-dir named them."""
    output: str | None = None
    """The page; RUN/report.html for one run and runs/report.html for several when not given."""


def run_report(arguments: Sequence[str]) -> None:
    """Write the report and say where it is.

    Args:
        arguments: What follows `report`.

    Raises:
        UserError: If a folder is no run, a run has no steps, or the page cannot be written.
    """
    settings = tyro.cli(ReportSettings, prog="python -m gafscope report", args=list(arguments))
    if not settings.runs:
        raise UserError(
            "'report' needs the folder of at least one run, but found none: "
            "`python -m gafscope report runs/NAME`."
        )
    runs = [load_run(folder) for folder in settings.runs]
    path = runs[0].folder / "report.html" if len(runs) == 1 else _SEVERAL
    path = path if settings.output is None else Path(settings.output)
    make_folder(path.parent)
    write_report(runs, path)
    print(f"Report: {path}")
