"""Several runs side by side: what sets them apart, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gafscope.records import Run
from gafscope.report.facts import Facts
from gafscope.report.tables import Table, clip, numbers
from gafscope.report.verdict import Finding, percent

_CONTROLS = ("yoked_to", "max_updates", "skip_rate")
_SEEDS = ("seed", "sampling_seed")
_NOTICEABLE = 0.05
_ABSENT = "not set"


def run_names(folders: list[Path]) -> list[str]:
    """Name runs by the ends of their paths, as short as still tells them apart.

    Args:
        folders: Different folders.

    Returns:
        A name each.

    Example:
        >>> run_names([Path("x/a"), Path("y/a"), Path("x/b")])
        ['x/a', 'y/a', 'b']
    """
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        others = [other for other in parts if other is not own]
        length = 1
        while length < len(own) and any(o[-length:] == own[-length:] for o in others):
            length += 1
        names.append("/".join(own[-length:]))
    return names


def compare(runs: Mapping[str, Run], facts: Mapping[str, Facts]) -> list[Finding]:
    """Say what several runs show beside each other.

    Args:
        runs: Name -> run, at least two.
        facts: Name -> its numbers.

    Returns:
        The findings.
    """
    differing = differing_settings(runs)
    found = [
        _settings(differing),
        _outcome(runs, facts),
        _agreement(facts),
        _updates(runs, facts),
        Finding("What this cannot tell", _caution(runs)),
    ]
    return [finding for finding in found if finding is not None]


def differing_settings(runs: Mapping[str, Run]) -> dict[str, list[str]]:
    """Find the settings in which runs differ.

    Args:
        runs: Name -> run.

    Returns:
        Setting -> its value in each run, as text.
    """
    keys = dict.fromkeys(key for run in runs.values() for key in run.config)
    values = {
        str(key): [clip(run.config[key]) if key in run.config else _ABSENT for run in runs.values()]
        for key in keys
    }
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def comparison_table(runs: Mapping[str, Run], facts: Mapping[str, Facts]) -> Table:
    """Lay the runs' final numbers side by side.

    Args:
        runs: Name -> run.
        facts: Name -> its numbers.

    Returns:
        A row a number, a column a run; numbers that no run has are left out.
    """
    columns = [numbers(run, facts[name]) for name, run in runs.items()]
    rows = [[title, *(column[title] for column in columns)] for title in columns[0]]
    known = [row for row in rows if any(cell != "-" for cell in row[1:])]
    return Table("The runs in numbers", ["number", *runs], known)


def settings_table(runs: Mapping[str, Run]) -> Table:
    """Lay the settings in which runs differ side by side.

    Args:
        runs: Name -> run.

    Returns:
        A row a setting, a column a run.
    """
    rows = [[clip(key), *texts] for key, texts in differing_settings(runs).items()]
    return Table("Settings in which the runs differ", ["setting", *runs], rows)


def _settings(differing: Mapping[str, list[str]]) -> Finding:
    own = [key for key in differing if key not in _SEEDS]
    if not own:
        what = "only in their seed" if differing else "in no setting"
        return Finding("What differs", f"The runs differ {what}.")
    listed = "; ".join(f"{clip(key)} ({', '.join(differing[key])})" for key in own[:6])
    more = f"; and {len(own) - 6} more" if len(own) > 6 else ""
    text = f"The runs differ in {listed}{more}."
    if len(own) == 1:
        return Finding("What differs", text)
    text += f" With {len(own)} settings that differ, no outcome can be put down to one of them."
    return Finding("What differs", text, warning=True)


def _outcome(runs: Mapping[str, Run], facts: Mapping[str, Facts]) -> Finding | None:
    last = {name: facts[name].validation_accuracy for name in runs}
    last = {name: value for name, value in last.items() if not math.isnan(value)}
    if len(last) < 2:
        return Finding("Outcome", "Fewer than two runs have a validation accuracy to compare.")
    order = sorted(last, key=lambda name: -last[name])
    listed = ", ".join(f"{name} {percent(last[name])}" for name in order)
    gap = 100 * (last[order[0]] - last[order[-1]])
    text = (
        f"Validation accuracy at the end: {listed}. Highest and lowest are {gap:.1f} points apart."
    )
    best = {name: facts[name].best_validation_accuracy for name in order}
    highest = sorted(best, key=lambda name: -best[name])
    if highest != order:
        listed = ", ".join(f"{name} {percent(best[name])}" for name in highest)
        text += f" By their best validations the order is another: {listed}."
    return Finding("Outcome", text)


def _agreement(facts: Mapping[str, Facts]) -> Finding | None:
    late = {name: own.distance.last for name, own in facts.items() if own.distance is not None}
    if len(late) < 2:
        return None
    listed = ", ".join(f"{name} {distance:.3f}" for name, distance in late.items())
    return Finding("Agreement", f"Mean cosine distance at the end (1: orthogonal): {listed}.")


def _updates(runs: Mapping[str, Run], facts: Mapping[str, Facts]) -> Finding | None:
    made = {name: own.updates for name, own in facts.items() if own.updates is not None}
    if len(made) < 2:
        return None
    text = f"Updates made: {', '.join(f'{name} {count:,}' for name, count in made.items())}."
    if max(made.values()) - min(made.values()) <= _NOTICEABLE * max(made.values()):
        return Finding("Updates", f"{text} That is within 5% of each other.")
    controls = [name for name, run in runs.items() if _is_control(run.config)]
    text += " Fewer updates act like stopping earlier, which alone can change the outcome."
    if controls:
        return Finding(
            "Updates", f"{text} Controls for that among the runs: {', '.join(controls)}."
        )
    text += " No control that makes as many updates is among the runs (--yoked-to)."
    return Finding("Updates", text, warning=True)


def _is_control(config: Mapping[str, Any]) -> bool:
    return any(config.get(key) is not None for key in _CONTROLS)


def _caution(runs: Mapping[str, Run]) -> str:
    groups: dict[str, int] = {}
    for run in runs.values():
        settings = {str(k): clip(v) for k, v in run.config.items() if k not in _SEEDS}
        key = repr(sorted(settings.items()))
        groups[key] = groups.get(key, 0) + 1
    fewest = min(groups.values())
    seeds = (
        "Some settings were run only once"
        if fewest == 1
        else (f"Every setting was run at least {fewest} times")
    )
    return (
        f"{seeds}. Runs that differ in nothing but the seed differ in their outcome too: a gap "
        "counts only when it is clearly larger than that, over several seeds."
    )
