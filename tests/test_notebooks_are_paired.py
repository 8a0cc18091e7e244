"""Each notebook stands beside a script of the same cells, and holds no outputs."""

from pathlib import Path

import jupytext
import nbformat
import pytest

_NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
_NAMES = sorted(path.stem for path in _NOTEBOOKS.glob("*.ipynb"))


def _cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_script_has_its_notebook():
    scripts = sorted(path.stem for path in (_NOTEBOOKS / "scripts").glob("*.py"))
    assert scripts == _NAMES
    assert scripts  # there is something to compare


@pytest.mark.parametrize("name", _NAMES)
def test_script_and_notebook_hold_the_same_cells(name):
    notebook = nbformat.read(_NOTEBOOKS / f"{name}.ipynb", as_version=4)
    script = jupytext.read(_NOTEBOOKS / "scripts" / f"{name}.py", fmt="py:percent")
    assert _cells(notebook) == _cells(script), "run: jupytext --sync notebooks/*.ipynb"


@pytest.mark.parametrize("name", _NAMES)
def test_no_outputs_are_stored(name):
    notebook = nbformat.read(_NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
