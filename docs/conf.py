"""Settings of the documentation: `python -m sphinx -W docs docs/_build`."""

from __future__ import annotations

import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

project = "gafscope"
release = metadata.version("gafscope")
copyright = "the authors of gafscope"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
# Single backticks in docstrings are code.
default_role = "code"
html_title = "gafscope"

# Shapes in annotations, such as Float64[Tensor, "k k"], read better where they are described.
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# The notebooks of the repository, with their outputs.
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
# Two classes have an attribute k.
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]

_HERE = Path(__file__).parent
_COPIES = _HERE / "notebooks"
shutil.rmtree(_COPIES, ignore_errors=True)
shutil.copytree(_HERE.parent / "notebooks", _COPIES, ignore=shutil.ignore_patterns("*.py", ".*"))


def _escape(
    app: Any, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Let formulas such as |mu|^2 and shapes such as (k, *shape) be text."""
    for i, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
        # A letter right after a closing backtick, as in `Block`s, needs a gap that is not seen.
        for j in range(2, len(parts), 2):
            parts[j] = re.sub(r"^(?=\w)", r"\\ ", parts[j])
        lines[i] = "".join(parts)


def setup(app: Any) -> None:
    """Escape docstrings before their sections are read."""
    app.connect("autodoc-process-docstring", _escape, priority=1)
