"""`python -m gafscope analyses`, and each analysis by its name."""

from __future__ import annotations

from collections.abc import Sequence

from gafscope.analyses import ANALYSES, Analysis, get_analysis
from gafscope.cli.output import print_table, print_text
from gafscope.cli.settings import read_settings
from gafscope.errors import UserError
from gafscope.plots import save_figure
from gafscope.plots.studies import FIGURES
from gafscope.records import atomic_write

_USAGE = """\
usage: python -m gafscope analyses [NAME | --all] [settings of the analysis]

Without a name, list the analyses. With one, run it: the same as `python -m gafscope NAME`.
--all runs every analysis in turn; one that was interrupted goes on where it stopped."""


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
        for name in ANALYSES:
            print(f"\n== {name} ==")
            run_analysis(get_analysis(name), rest)
        return
    if first.startswith("-"):
        raise UserError(
            f"'analyses' takes the name of an analysis or --all first, but found '{first}'. "
            "`python -m gafscope analyses` lists the names."
        )
    run_analysis(get_analysis(first), rest)


def run_analysis(analysis: Analysis, arguments: Sequence[str]) -> None:
    """Run an analysis, print its table and verdict, and write table, verdict and figures.

    Args:
        analysis: The analysis.
        arguments: Its settings, as on the command line.

    Raises:
        UserError: If a setting is wrong or something cannot be written.
    """
    settings = read_settings(analysis.name, analysis.presets, arguments)
    result = analysis.run(settings)
    with atomic_write(result.folder / "summary.csv") as file:
        file.write(result.table.to_csv(index=False).encode())
    with atomic_write(result.folder / "verdict.txt") as file:
        file.write(f"{result.verdict}\n".encode())
    written = [result.folder / "summary.csv", result.folder / "verdict.txt"]
    for name, figure in FIGURES[analysis.name](result.table, result.curves).items():
        written += save_figure(figure, result.folder / "figures", name)
    for data, part in result.table.groupby("data", sort=False):
        print(f"\n{data}")
        print_table(part.drop(columns="data").dropna(axis="columns", how="all"))
    print_text(result.verdict)
    print_text("Intervals are 95% over seeds. Runs, table and figures:")
    for path in written:
        print(f"  {path}")


def _list() -> None:

    rows = [
        {
            "analysis": analysis.name,
            "question": analysis.question,
            "presets": "; ".join(f"{name}: {time}" for name, time in analysis.minutes.items()),
        }
        for analysis in ANALYSES.values()
    ]
    for row in rows:
        print(f"{row['analysis']:<14}{row['question']}\n{'':<14}{row['presets']}")
    print("\nRun one with `python -m gafscope NAME`, all with `python -m gafscope analyses --all`.")
