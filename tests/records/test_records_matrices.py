from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gafscope.records.matrices import MatrixStore, encode_part, part_files, part_name


def matrix(k: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(k, k))


def write(folder: Path, *rows: tuple[int, str, np.ndarray]) -> Path:
    path = folder / part_name(rows[0][0])
    path.write_bytes(encode_part(rows))
    return path


def test_columns_of_a_part(tmp_path: Path) -> None:
    path = write(tmp_path, (3, "", matrix(2, 0)), (3, "fc", matrix(3, 1)))
    assert path.name == "part-00000003.parquet"
    table = pq.ParquetFile(path).read()
    assert table.schema.names == ["step", "layer", "k", "values"]
    assert table.schema.types == [pa.int64(), pa.string(), pa.int32(), pa.list_(pa.float64())]
    assert table["k"].to_pylist() == [2, 3]
    assert table["values"].to_pylist()[1] == matrix(3, 1).ravel().tolist()


def test_equal_rows_give_equal_bytes() -> None:
    rows = [(step, "", matrix(4, step)) for step in range(20)]
    assert encode_part(rows) == encode_part(list(rows))


def test_reading_over_several_parts(tmp_path: Path) -> None:
    write(tmp_path, (0, "", matrix(2, 0)), (5, "", matrix(3, 1)), (5, "fc", matrix(3, 2)))
    write(tmp_path, (100_000_000, "", matrix(1, 3)))
    write(tmp_path, (7, "", matrix(2, 4)), (7, "conv", matrix(2, 5)))
    store = MatrixStore(tmp_path)
    assert store.steps == [0, 5, 7, 100_000_000]
    assert store.layers == ["fc", "conv"]
    for step, layer, expected in [
        (5, "fc", matrix(3, 2)),
        (7, "conv", matrix(2, 5)),
        (0, "", matrix(2, 0)),
        (5, "", matrix(3, 1)),
        (100_000_000, "", matrix(1, 3)),
    ]:
        np.testing.assert_array_equal(store.read(step, layer), expected)
    assert store.read(0, "fc") is None
    assert store.read(1, "") is None


def test_what_is_read_is_a_copy(tmp_path: Path) -> None:
    write(tmp_path, (0, "", matrix(2, 0)))
    store = MatrixStore(tmp_path)
    first = store.read(0, "")
    assert first is not None
    first[:] = 0
    np.testing.assert_array_equal(store.read(0, ""), matrix(2, 0))


def test_non_finite_numbers_survive(tmp_path: Path) -> None:
    bad = np.array([[np.nan, np.inf], [-np.inf, 1e-300]])
    write(tmp_path, (0, "", bad))
    np.testing.assert_array_equal(MatrixStore(tmp_path).read(0, ""), bad)


def test_steps_in_order_read_each_file_once(tmp_path: Path, monkeypatch) -> None:
    for first in (0, 10):
        write(tmp_path, *((first + i, "", matrix(2, i)) for i in range(10)))
    store = MatrixStore(tmp_path)
    steps = store.steps
    opened: list[Path] = []
    original = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda path: opened.append(path) or original(path))
    for step in steps:
        store.read(step, "")
    assert opened == part_files(tmp_path)


@pytest.mark.parametrize("missing", [True, False])
def test_no_parts(tmp_path: Path, missing: bool) -> None:
    store = MatrixStore(tmp_path / "matrices" if missing else tmp_path)
    assert store.steps == []
    assert store.read(0, "") is None
