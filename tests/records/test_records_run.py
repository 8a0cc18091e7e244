from __future__ import annotations

import dataclasses
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from gafscope.errors import UserError
from gafscope.records import Run, RunWriter, load_run

ROWS = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])


def record(folder: Path, *, steps: int = 6, killed: bool = False) -> Path:
    writer = RunWriter(folder, {"tau": 0.97, "microbatches": 3}, seed=1, device="cpu")
    for step in range(steps):
        row = {"step": step, "loss": 1 / (step + 1), "accuracy": math.nan}
        writer.scalars({**row, "accepted": step % 2 * 2, "stepped": step % 2 == 1})
        if step % 2 == 0:
            layers = {"fc": ROWS @ ROWS.T} if step < 4 else {}
            writer.gramians(step, (step + 1) * ROWS @ ROWS.T, layers)
    if killed:
        writer._file.close()
    else:
        writer.summary({"loss": 0.1})
        writer.close()
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return load_run(record(tmp_path / "demo <1>"))


def test_what_a_run_holds(run: Run) -> None:
    assert run.config == {"tau": 0.97, "microbatches": 3}
    assert run.provenance["seed"] == 1
    assert run.summary == {"loss": 0.1}
    assert run.scalars["step"].tolist() == list(range(6))
    assert run.recorded_steps == [0, 2, 4]
    assert run.layers == ["fc"]
    assert dataclasses.is_dataclass(run)
    assert len(repr(run)) < 300


def test_matrix_and_cosine_distance(run: Run) -> None:
    np.testing.assert_array_equal(run.matrix(2), 3 * ROWS @ ROWS.T)
    np.testing.assert_array_equal(run.matrix(2, "fc"), ROWS @ ROWS.T)
    half = 1 - math.sqrt(0.5)
    expected = [[0, half, 2], [half, 0, 2 - half], [2, 2 - half, 0]]
    for layer in (None, "fc"):
        np.testing.assert_allclose(run.cosine_distance(2, layer), expected, atol=1e-15)


def test_a_step_without_matrices_names_its_neighbours(run: Run) -> None:
    with pytest.raises(UserError, match=r"Step 3 of .* nearest recorded steps are 0, 2, 4\."):
        run.matrix(3)
    with pytest.raises(UserError, match="nearest"):
        run.cosine_distance(99, "fc")


def test_an_unknown_layer_offers_the_known_ones(run: Run) -> None:
    with pytest.raises(UserError, match=r"Unknown layer 'fd'\. Did you mean 'fc'"):
        run.matrix(2, "fd")


def test_a_layer_that_was_not_recorded_at_that_step(run: Run) -> None:
    with pytest.raises(UserError, match=r"Step 4 .* has no Gramian of layer 'fc'"):
        run.matrix(4, "fc")


def test_a_run_without_matrices(tmp_path: Path) -> None:
    run = load_run(record(tmp_path, killed=True))
    assert run.recorded_steps == run.layers == []
    with pytest.raises(UserError, match="holds no Gramians"):
        run.matrix(0)


def test_a_run_that_is_still_going_or_was_killed(tmp_path: Path) -> None:
    record(tmp_path, killed=True)
    with open(tmp_path / "scalars.jsonl", "ab") as file:
        file.write(b'{"step":6,"lo')
    run = load_run(tmp_path)
    assert run.summary == {}
    assert run.scalars["step"].tolist() == list(range(6))


def test_it_shows_itself(run: Run, tmp_path: Path) -> None:
    shown = re.findall(r"<td>(.*?)</td>", run._repr_html_())
    assert shown == ["demo &lt;1&gt;", "6", "3", "0.1667", "", "33.3%"]
    empty = load_run(record(tmp_path / "empty", steps=0))
    assert re.findall(r"<td>(.*?)</td>", empty._repr_html_()) == ["empty", "0", "", "", ""]


def test_it_draws_itself(run: Run) -> None:
    assert len(run.plot().axes) == 5


def test_a_missing_folder_offers_the_runs_beside_it(tmp_path: Path) -> None:
    for name in ("gaf-1", "gaf-2", "mean"):
        record(tmp_path / name, steps=0)
    (tmp_path / "no-run").mkdir()
    with pytest.raises(UserError) as caught:
        load_run(tmp_path / "gaf-22")
    message = str(caught.value)
    assert "gaf-22 does not exist" in message
    assert f"Runs near it: {tmp_path / 'gaf-2'}, " in message
    assert "no-run" not in message
    with pytest.raises(UserError, match=r"is not a run: .*Runs near it: .*gaf-1"):
        load_run(tmp_path)
    with pytest.raises(UserError, match=r"is not a run: .*Runs near it: .*gaf-1"):
        load_run(tmp_path / "no-run")


def test_a_missing_folder_with_nothing_beside_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist\. Give the folder that a run wrote"):
        load_run(tmp_path / "a" / "b")


def test_a_copy_reads_the_same(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "copy")
    copy = load_run(str(tmp_path / "copy"))
    assert copy.scalars.equals(run.scalars)
    np.testing.assert_array_equal(copy.matrix(4), run.matrix(4))
