"""Matrices as the page gets them, against the recorded gradients."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from report_runs import record, rows_at

from gafscope.records import RunWriter, load_run
from gafscope.report.facts import readable
from gafscope.report.matrices import layer_distances, read_matrices, spread
from gafscope.report.tables import layer_table


def distance(step: int, i: int, j: int) -> float:
    gradients = rows_at(step)
    a, b = gradients[i], gradients[j]
    return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def test_cells_are_the_lower_triangle_in_thousandths(tmp_path: Path) -> None:
    run = record(tmp_path / "a", steps=5)
    data = read_matrices(run, readable(run)).data()
    assert data["steps"] == [0, 1, 2, 3, 4]
    for step, cells in enumerate(data["cells"]):
        expected = [distance(step, i, j) for i in range(3) for j in range(i + 1)]
        assert cells == pytest.approx([1000 * d for d in expected], abs=0.51)


def test_captions_tell_distances_and_decisions(tmp_path: Path) -> None:
    run = record(tmp_path / "a", steps=2)
    shown = read_matrices(run, readable(run))
    pairs = [distance(1, 0, 1), distance(1, 0, 2), distance(1, 1, 2)]
    assert shown.captions[1] == (
        f"Step 1: mean cosine distance {np.mean(pairs):.3f} between 3 gradients, "
        f"{min(pairs):.3f} to {max(pairs):.3f}; 2 of 3 accepted, updated."
    )
    assert shown.captions[0].endswith("; 0 of 3 accepted, no update.")


def test_gradients_that_are_not_finite_have_no_number(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", {}, seed=0, device="cpu")
    writer.scalars({"step": 0})
    writer.gramians(0, [[math.nan, math.nan], [math.nan, 1.0]], {})
    writer.close()
    run = load_run(tmp_path / "a")
    shown = read_matrices(run, readable(run))
    assert shown.data()["cells"] == [[None, None, 0]]
    assert "no two finite gradients of 2" in shown.captions[0]


def test_large_matrices_are_cut_and_thinned_to_a_budget(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", {}, seed=0, device="cpu")
    for step in range(150):
        writer.scalars({"step": step})
        rows = np.random.default_rng(step).standard_normal((60, 3))
        writer.gramians(step, rows @ rows.T, {})
    writer.close()
    run = load_run(tmp_path / "a")
    for budget, most in ((1.0, 120_000), (0.25, 30_000)):
        shown = read_matrices(run, readable(run), budget)
        assert shown.cut
        assert shown.steps[0] == 0 and shown.steps[-1] == 149
        assert {len(cells) for cells in shown.data()["cells"]} == {48 * 49 // 2}
        assert 0.9 * most < sum(len(cells) for cells in shown.data()["cells"]) <= most
    assert "between 60 gradients" in shown.captions[0]


def test_layers_by_steps(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", {}, seed=0, device="cpu")
    same, opposed = np.ones((2, 2)), np.array([[1.0, -1.0], [-1.0, 1.0]])
    for step in range(6):
        writer.scalars({"step": step})
        layers = {"one": same, "two": opposed if step else same} if step % 2 == 0 else {}
        writer.gramians(step, same, layers)
    writer.close()
    table, layers, steps = layer_distances(load_run(tmp_path / "a"))
    assert (layers, steps) == (2, 3)
    assert table.columns.tolist() == [0, 2, 4]
    assert table.loc["one"].tolist() == [0, 0, 0]
    assert table.loc["two"].tolist() == [0, 2, 2]
    assert layer_table(table).rows == [["one", "0.000", "0.000"], ["two", "0.000", "2.000"]]


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (1000, 7)])
def test_spread_keeps_both_ends(count: int, most: int) -> None:
    places = spread(count, most)
    assert len(places) == min(count, most)
    assert places[0] == 0 and places[-1] == count - 1
    gaps = np.diff(places)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
