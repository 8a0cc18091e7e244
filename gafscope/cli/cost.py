"""`python -m gafscope cost`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gafscope.analyses.step_cost import StepCostSettings, measure_step_cost
from gafscope.cli.output import make_folder, print_table, print_text
from gafscope.cli.settings import read_settings, take
from gafscope.errors import unknown_name
from gafscope.records import atomic_write

_WHAT = ("step",)


def run_cost(arguments: Sequence[str]) -> None:
    """Measure costs, print the table and write it.

    Args:
        arguments: What follows `cost`; `--what step` is what is measured.

    Raises:
        UserError: If a setting is wrong.
    """
    rest, what = take("--what", list(arguments))
    if what not in (None, *_WHAT):
        raise unknown_name("cost", str(what), _WHAT)
    settings = read_settings("cost", {"default": StepCostSettings()}, rest)
    table = measure_step_cost(settings)
    path = Path(settings.output) / "step.csv"
    make_folder(path.parent)
    with atomic_write(path) as file:
        file.write(table.to_csv(index=False).encode())
    print_table(table)
    print_text(
        "Ratios are medians over the turns, with quartiles in brackets; 'ratio' is to a plain "
        "PyTorch loop that averages, 'ratio to mean' to this trainer's own averaging."
    )
    print(f"\nTable: {path}")
