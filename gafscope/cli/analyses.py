"""`python -m gafscope analyses`, and each analysis by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gafscope.analyses import ANALYSES, Analysis, get_analysis
from gafscope.analyses.planning import estimate
from gafscope.cli import recipe
from gafscope.cli.output import format_table, print_table, print_text
from gafscope.cli.settings import read_settings, take
from gafscope.cli.study import conclude, keep, write_conclusion
from gafscope.errors import UserError
from gafscope.report.study import StudyPage, write_index, write_study
from gafscope.trainer import TrainSettings

if TYPE_CHECKING:
    import pandas as pd

_ALSO = (
    "--dry-run tells how many steps, hours and megabytes it will be, and starts nothing. "
    "--redraw FOLDER makes table and figures again from what was measured there."
)
_INDEX = Path("runs/analyses.html")
_USAGE = """\
usage: python -m gafscope analyses [NAME | --all] [settings of the analysis]

Without a name, list the analyses. With one, run it: the same as `python -m gafscope NAME`.
--all runs every analysis in turn; one that was interrupted goes on where it stopped. At the end
runs/analyses.html links the pages of all.
With --dry-run nothing is run: steps, hours and megabytes are told."""


def list_or_run(arguments: Sequence[str]) -> None:
    """List the analyses, or run one or all of them.

    Args:
        arguments: What follows `analyses`.

    Raises:
        UserError: If an analysis is unknown or a setting wrong.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return
    if not arguments:
        _list()
        return
    first, rest = arguments[0], arguments[1:]
    if first == "--all":
        _run_all(rest)
        return
    if first.startswith("-"):
        raise UserError(
            f"'analyses' takes the name of an analysis or --all first, but found '{first}'. "
            "`python -m gafscope analyses` lists the names."
        )
    run_analysis(get_analysis(first), rest)


def _run_all(arguments: Sequence[str]) -> None:
    pages = []
    for name, analysis in ANALYSES.items():
        print(f"\n== {name} ==")
        pages.append(run_analysis(analysis, arguments))
    written = [page for page in pages if page is not None]
    if written:
        write_index(written, _INDEX)
        print(f"\nAll of them on one page: {_INDEX}")


def run_analysis(analysis: Analysis, arguments: Sequence[str]) -> StudyPage | None:
    """Run an analysis, print its table and verdict, and write table, verdict, figures and page.

    Args:
        analysis: The analysis.
        arguments: Its settings, as on the command line.

    Returns:
        Its page; nothing after a dry run.

    Raises:
        UserError: If a setting is wrong or something cannot be written.
    """
    rest, folder = take("--redraw", list(arguments))
    if folder is not None:
        if rest:
            raise UserError(
                f"--redraw takes the settings from the folder's recipe, so '{rest[0]}' has no "
                "place beside it; leave it out."
            )
        return _show(analysis, Path(folder))
    dry = "--dry-run" in rest
    rest = [word for word in rest if word != "--dry-run"]
    settings = read_settings(analysis.name, analysis.presets, rest, _ALSO)
    if dry:
        _tell_plan(analysis.plan(settings))
        return None
    measured = analysis.measure(settings)
    keep(analysis, settings, measured)
    return _show(analysis, measured.folder)


def _show(analysis: Analysis, folder: Path) -> StudyPage:
    """Print and write what follows from the measurements in a folder."""
    result = conclude(analysis, folder)
    written = write_conclusion(analysis, result)
    tables = {}
    for data, part in result.table.groupby("data", sort=False):
        print(f"\n{data}")
        shown = part[_with_ends(part, result.shown)] if result.shown else part.drop(columns="data")
        tables[str(data)] = shown = shown.dropna(axis="columns", how="all")
        print_table(shown)
    print_text(result.verdict)
    print_text("Intervals are 95% over seeds. Runs, table and figures:")
    page = StudyPage(
        analysis.name,
        analysis.question,
        result.verdict,
        {data: format_table(table) for data, table in tables.items()},
        [path for path in written if path.suffix == ".png"],
        (folder / recipe.NAME).read_text(encoding="utf-8"),
        folder / "report.html",
    )
    write_study(page)
    for path in [*written, page.path]:
        print(f"  {path}")
    return page


def _with_ends(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Give the columns that are there, each with the ends of its interval."""
    wanted = [f"{column}{end}" for column in columns for end in ("", "_low", "_high")]
    return [column for column in wanted if column in table]


def _tell_plan(plan: Sequence[TrainSettings]) -> None:
    table = estimate(plan)
    print_table(table)
    print_text(
        f"{table['runs'].sum()} trainings of {table['steps'].sum():,} steps in all: about "
        f"{table['hours'].sum():.2g} hours one after the other on this machine, and "
        f"{table['disk_MB'].sum():,.0f} MB. A few steps of each kind were timed; nothing was kept."
    )


def _list() -> None:

    rows = [
        {
            "analysis": analysis.name,
            "question": analysis.question,
            "presets": "; ".join(f"{name}: {time}" for name, time in analysis.minutes.items()),
        }
        for analysis in ANALYSES.values()
    ]
    width = max(len(row["analysis"]) for row in rows) + 2
    for row in rows:
        print(f"{row['analysis']:<{width}}{row['question']}\n{'':<{width}}{row['presets']}")
    print("\nRun one with `python -m gafscope NAME`, all with `python -m gafscope analyses --all`.")
