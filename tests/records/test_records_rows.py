from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gafscope.errors import UserError
from gafscope.records.rows import encode_row, read_rows


def write(path: Path, *rows: dict) -> Path:
    path.write_bytes(b"".join(map(encode_row, rows)))
    return path


def strict(line: bytes) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


@given(st.lists(st.floats(), min_size=1))
def test_floats_survive_exactly(tmp_path_factory: pytest.TempPathFactory, values: list) -> None:
    rows = [{"loss": value, "distance_to_sum": [value, 1.0]} for value in values]
    lines = [encode_row(row) for row in rows]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert all(strict(line) for line in lines)
    table = read_rows(write(tmp_path_factory.mktemp("rows") / "scalars.jsonl", *rows))
    assert table["loss"].dtype == np.float64
    np.testing.assert_array_equal(table["loss"], values)
    np.testing.assert_array_equal([row[0] for row in table["distance_to_sum"]], values)


def test_types_of_the_columns(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "stepped": True, "loss": 1, "rule": "GAF", "accuracy": None, "lists": None},
        {"step": 1, "stepped": False, "loss": 0.5, "rule": None, "accuracy": None, "lists": [1]},
    ]
    table = read_rows(write(tmp_path / "scalars.jsonl", *rows))
    assert list(table) == ["step", "stepped", "loss", "rule", "accuracy", "lists"]
    assert table["step"].dtype == np.int64
    assert table["stepped"].dtype == bool
    assert table["loss"].tolist() == [1.0, 0.5]
    assert table["rule"].tolist()[0] == "GAF"
    assert table["rule"].isna().tolist() == [False, True]
    assert table["accuracy"].dtype == np.float64
    assert table["lists"].tolist() == [None, [1]]


def test_a_row_may_carry_more_than_the_others(tmp_path: Path) -> None:
    rows = [{"step": 0}, {"step": 1, "validation_loss": math.inf, "bad": [None, -math.inf, "w"]}]
    table = read_rows(write(tmp_path / "scalars.jsonl", *rows))
    assert list(table) == ["step", "validation_loss", "bad"]
    np.testing.assert_array_equal(table["validation_loss"], [math.nan, math.inf])
    first, second, third = table["bad"][1]
    assert math.isnan(first)
    assert (second, third) == (-math.inf, "w")


def test_numpy_and_torch_values_are_taken() -> None:
    row = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": torch.tensor(math.nan),
        "d": torch.tensor([0.25, math.inf]),
        "e": np.bool_(True),
        "f": (1, 2),
    }
    assert strict(encode_row(row)) == {
        "a": 0.5,
        "b": 3,
        "c": None,
        "d": [0.25, "inf"],
        "e": True,
        "f": [1, 2],
    }


def test_other_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"cannot hold a PosixPath .*Give a number"):
        encode_row({"path": Path("a")})


def test_a_last_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "scalars.jsonl", {"step": 0}, {"step": 1})
    whole = path.read_bytes()
    for cut in range(1, len(encode_row({"step": 1})) + 1):
        path.write_bytes(whole[:-cut])
        assert read_rows(path)["step"].tolist() == [0]


@pytest.mark.parametrize("damage", [b'{"step":', b"3", b""])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "scalars.jsonl"
    path.write_bytes(encode_row({"step": 0}) + damage + b"\n" + encode_row({"step": 2}))
    with pytest.raises(UserError, match=r"Line 2 of .*scalars\.jsonl is not a JSON object"):
        read_rows(path)


def test_no_rows_yet(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path / "scalars.jsonl")).empty
