from __future__ import annotations

import sys
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

import gafscope.live.view
from gafscope.errors import UserError
from gafscope.instruments import watch
from gafscope.live import live_view
from gafscope.live.notebook import NotebookPanel
from gafscope.live.terminal import ProgressLine

PNG = b"\x89PNG"
LOOP = """
import torch
from torch import nn
from gafscope.instruments import watch
from gafscope.live import notebook

notebook._PICTURE_SHARE, notebook._BETWEEN_PICTURES = 1e9, 0.0  # whenever it can
torch.manual_seed(0)
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with watch(model, optimizer, every=1, live=True) as scope:
    for _ in range(STEPS):
        for inputs in torch.randn(4, 8, 3):
            scope.loss((model(inputs) - 1).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
print(len(scope.run.scalars))
"""


class Watching(NotebookClient):
    """Notes the pictures that are sent to the widget while a cell runs."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.pictures: list[bytes] = []

    def handle_comm_msg(self, outs: Any, msg: Any, cell_index: int) -> None:
        super().handle_comm_msg(outs, msg, cell_index)
        self.pictures += [bytes(b) for b in msg["buffers"] if bytes(b).startswith(PNG)]


@pytest.fixture
def in_jupyter(monkeypatch) -> None:
    monkeypatch.setattr(gafscope.live.view, "in_notebook", lambda: True)


def test_the_picture_changes_while_the_loop_runs_and_stays_afterwards() -> None:
    cell = nbformat.v4.new_code_cell(LOOP.replace("STEPS", "5"))
    client = Watching(nbformat.v4.new_notebook(cells=[cell]), timeout=300, kernel_name="python3")
    client.execute()
    assert len(set(client.pictures)) == 6
    shown, printed = client.nb.cells[0].outputs
    assert "image/png" in shown["data"]
    assert "application/vnd.jupyter.widget-view+json" not in shown["data"]
    assert printed["text"] == "5\n"


def test_outside_jupyter_there_is_a_line() -> None:
    assert isinstance(live_view({}), ProgressLine)


@pytest.mark.usefixtures("in_jupyter")
def test_jupyter_gets_the_panel() -> None:
    assert isinstance(live_view({}), NotebookPanel)


@pytest.mark.usefixtures("in_jupyter")
def test_without_ipywidgets_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"ipywidgets.*pip install 'gafscope\[notebook\]'"):
        watch(model, optimizer, live=True)


def test_a_drawing_that_fails_does_not_end_the_loop(monkeypatch, caplog) -> None:
    panel = NotebookPanel({})
    with panel:
        monkeypatch.setattr(panel._history, "draw", lambda: 1 / 0)
        for _ in range(2):
            with panel._unless_broken():
                panel._history.draw()
    assert [r.message for r in caplog.records] == [
        "watch: the live panel could not be drawn: ZeroDivisionError('division by zero')"
    ]


def test_listeners_are_entered_and_left_with_the_watch() -> None:
    happened = []

    class Listening:
        def __enter__(self) -> None:
            happened.append("entered")

        def __call__(self, record: Any) -> None:
            happened.append(record.step)

        def __exit__(self, *error: object) -> None:
            happened.append("left")

    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = watch(model, optimizer, every=1, listeners=[Listening()])
    for _ in range(2):
        with pytest.raises(KeyError), scope:
            for inputs in torch.ones(2, 8, 3):
                model(inputs).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            raise KeyError
    assert happened == ["entered", 0, "left", "entered", 1, "left"]


def test_the_panel_comes_back_from_the_runs_folder(tmp_path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, every=2, run_dir=tmp_path / "run") as scope:
        for _ in range(5):
            for inputs in torch.randn(3, 8, 3):
                scope.loss((model(inputs) - 1).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    matrix = next(a for a in scope.run.panel().axes if "step 4" in a.get_title(loc="left"))
    np.testing.assert_array_equal(matrix.images[0].get_array(), scope.run.cosine_distance(4))
