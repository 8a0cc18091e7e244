"""The page of an analysis, and the page that links those of several."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from gafscope.records import atomic_write
from gafscope.report.templating import environment, source

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True, eq=False)
class StudyPage:
    """What the page of an analysis shows.

    Attributes:
        name: Its name.
        question: What it answers, in one line.
        verdict: What was found, paragraphs separated by blank lines.
        tables: Title -> table of strings.
        figures: PNG files.
        recipe: Its settings as text.
        path: The page.
    """

    name: str
    question: str
    verdict: str
    tables: dict[str, pd.DataFrame]
    figures: Sequence[Path]
    recipe: str
    path: Path


def write_study(page: StudyPage) -> None:
    """Write the page of an analysis: verdict, tables, figures, settings, in one file.

    Args:
        page: What it shows.

    Raises:
        UserError: If it cannot be written.
    """
    tables = [
        {
            "title": title,
            "head": list(table.columns),
            "rows": [[str(cell) for cell in row] for row in table.itertuples(index=False)],
        }
        for title, table in page.tables.items()
    ]
    figures = [
        {
            "name": path.stem.replace("-", " "),
            "data": base64.b64encode(path.read_bytes()).decode(),
        }
        for path in page.figures
    ]
    _write(
        page.path,
        "study.html",
        title=page.name,
        question=page.question,
        verdict=page.verdict.strip().split("\n\n"),
        tables=tables,
        figures=figures,
        recipe=page.recipe,
    )


def write_index(pages: Sequence[StudyPage], path: Path) -> None:
    """Write the page that links the pages of several analyses.

    Args:
        pages: They have been written.
        path: The page.

    Raises:
        UserError: If it cannot be written.
    """
    entries = [
        {
            "name": page.name,
            "question": page.question,
            "verdict": page.verdict.strip().split("\n\n")[0],
            "link": os.path.relpath(page.path, path.parent),
        }
        for page in pages
    ]
    _write(path, "studies.html", title=f"{len(pages)} analyses", entries=entries)


def _write(path: Path, template: str, **values: Any) -> None:
    text = environment().get_template(template).render(style=source("style.css"), **values)
    with atomic_write(path, "w") as file:
        file.write(text)
