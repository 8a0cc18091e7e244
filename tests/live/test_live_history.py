from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from gafscope.geometry import mean_pairwise_distance
from gafscope.gradients import Gramian
from gafscope.instruments import Record
from gafscope.live.history import History, accepted_share
from gafscope.live.terminal import ProgressLine


def record(step: int, *, measured: bool = True, loss: float = 2.0, k: int = 4) -> Record:
    generator = torch.Generator().manual_seed(step)
    layers = {}
    for name in ("first", "second"):
        rows = torch.randn(k, 5, generator=generator, dtype=torch.float64)
        layers[name] = rows @ rows.T
    gramian = Gramian(layers["first"] + layers["second"], layers)
    row = {
        "step": step,
        "loss": loss,
        "accepted": 3,
        "stepped": True,
        "distance_mean": mean_pairwise_distance(gramian.matrix) if measured else math.nan,
        "distance_to_sum": [math.nan] * k,
    }
    return Record(step, row, gramian if measured else None)


def drawn(history: History):
    """Give the matrix and the heat map (columns by step) of a drawing."""
    axes = {a.get_title(loc="left"): a for a in history.draw().axes}
    (matrix,) = (a for title, a in axes.items() if title.startswith("microbatches"))
    (heat,) = (a for title, a in axes.items() if title.startswith("layers"))
    return matrix, heat


def test_what_is_drawn_is_what_was_recorded() -> None:
    history = History({"tau": 0.9})
    records = [record(0), record(10), record(15, measured=False), record(20, loss=math.nan)]
    for one in records:
        history.add(one)
    matrix, heat = drawn(history)
    last = records[-1].gramian
    assert last is not None
    assert matrix.get_title(loc="left") == "microbatches, step 20"
    np.testing.assert_array_equal(matrix.images[0].get_array(), last.cosine_distance())
    expected = [
        [mean_pairwise_distance(r.gramian.layers[name]) for r in records if r.gramian]
        for name in ("first", "second")
    ]
    np.testing.assert_allclose(heat.images[0].get_array(), expected)
    assert [tick.get_text() for tick in heat.get_xticklabels()] == ["0", "10", "20"]
    assert [tick.get_text() for tick in heat.get_yticklabels()] == ["first", "second"]
    loss, distance, accepted = history.draw().axes[:3]
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), [0, 10, 15])
    np.testing.assert_array_equal(distance.lines[0].get_xdata(), [0, 10, 20])
    np.testing.assert_array_equal(accepted.lines[0].get_ydata(), [0.75] * 4)


def test_nothing_recorded_is_drawn_as_such() -> None:
    figure = History({}).draw()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("not recorded") == 5


def test_a_long_run_keeps_a_bounded_number_of_layers_evenly_spread() -> None:
    history = History({})
    for step in range(1000):
        history.add(record(step))
    _, heat = drawn(history)
    rows, columns = heat.images[0].get_array().shape
    assert rows == 2
    assert 40 <= columns <= 80
    steps = [int(tick.get_text()) for tick in heat.get_xticklabels()]
    assert steps[0] == 0
    assert steps[-1] > 950


def test_the_share_is_of_the_steps_own_microbatches() -> None:
    assert accepted_share(record(0, k=4)) == 0.75
    assert accepted_share(record(0, k=6)) == 0.5


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_terminal_gets_one_line_that_renews_itself() -> None:
    file = Terminal()
    with ProgressLine(file) as line:
        for step in range(0, 100, 10):
            line(record(step))
    text = file.getvalue()
    last = text.rstrip().split("\r")[-1]
    assert text.count("\n") == 1
    assert "watch: 91 steps" in last
    assert "loss 2, distance" in last
    assert "accepted 75%" in last


def test_a_line_goes_on_where_it_stopped() -> None:
    file = Terminal()
    line = ProgressLine(file)
    for start in (0, 100):
        with line:
            line(record(start))
    assert "watch: 101 steps" in file.getvalue().rstrip().split("\r")[-1]


def test_a_file_gets_no_line() -> None:
    file = io.StringIO()
    with ProgressLine(file) as line:
        line(record(0))
    assert file.getvalue() == ""


@pytest.mark.parametrize("k", [2, 40])
def test_any_number_of_microbatches_is_drawn(k: int) -> None:
    history = History({})
    history.add(record(0, k=k))
    matrix, _ = drawn(history)
    assert matrix.images[0].get_array().shape == (k, k)
    assert len(matrix.texts) == (4 if k == 2 else 0)
