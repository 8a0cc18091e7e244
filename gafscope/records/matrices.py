"""A run's Gramians: Parquet parts, each holding what was recorded between two flushes.

Columns of a part: `step` int64, `layer` string ("" for the whole model), `k` int32, `values`
list<float64> (the k x k matrix, row after row). Its name carries the first step in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float64

WHOLE_MODEL = ""


def part_name(step: int) -> str:
    """Name the part whose first step is `step`.

    Args:
        step: The first step in the part.

    Returns:
        The file's name.
    """
    return f"part-{step:08d}.parquet"


def part_files(folder: Path) -> list[Path]:
    """List the parts in `folder`, first steps first.

    Args:
        folder: The `matrices` folder of a run.

    Returns:
        Their paths; empty when there is no such folder.
    """
    # By number: from step 100,000,000 on the names no longer sort as text.
    return sorted(folder.glob("part-*.parquet"), key=lambda path: int(path.stem[5:]))


def encode_part(rows: Sequence[tuple[int, str, Float64[np.ndarray, "k k"]]]) -> bytes:
    """Write recorded matrices as the bytes of one Parquet file.

    Args:
        rows: (step, layer, matrix) in the order in which they were recorded.

    Returns:
        The file's bytes; the same rows always give the same bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    steps, layers, matrices = zip(*rows, strict=True)
    offsets = np.cumsum([0, *(matrix.size for matrix in matrices)])
    assert offsets[-1] < 2**31, "one part holds at most 2**31 numbers; flush more often"
    flat = np.concatenate([matrix.ravel() for matrix in matrices])
    table = pa.table(
        {
            "step": pa.array(steps, pa.int64()),
            "layer": pa.array(layers, pa.string()),
            "k": pa.array([len(matrix) for matrix in matrices], pa.int32()),
            "values": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat)),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


@final
class MatrixStore:
    """The Gramians of one run, read part by part.

    The part that was read last is kept, so that going through the steps in order reads each
    file once.

    Args:
        folder: The `matrices` folder of a run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._part: Path | None = None
        self._rows: dict[int, dict[str, Float64[np.ndarray, "k k"]]] = {}

    @property
    def steps(self) -> list[int]:
        """The steps that have a matrix, in ascending order."""
        return sorted(self._index[0])

    @property
    def layers(self) -> list[str]:
        """The layers' names, in the order in which they were recorded."""
        return list(self._index[1])

    def read(self, step: int, layer: str) -> Float64[np.ndarray, "k k"] | None:
        """Read one matrix.

        Args:
            step: Any step.
            layer: Any layer, or "" for the whole model.

        Returns:
            The Gramian, (k, k), a copy; None when none was recorded for that step and layer.
        """
        matrix = self._at(step).get(layer)
        return None if matrix is None else matrix.copy()

    def read_layers(self, step: int) -> dict[str, Float64[np.ndarray, "k k"]]:
        """Read the matrices of all layers of one step.

        Args:
            step: Any step.

        Returns:
            Layer -> the Gramian, (k, k), a copy; empty where none was recorded.
        """
        found = self._at(step)
        return {layer: matrix.copy() for layer, matrix in found.items() if layer != WHOLE_MODEL}

    def _at(self, step: int) -> dict[str, Float64[np.ndarray, "k k"]]:
        part = self._index[0].get(step)
        if part is None:
            return {}
        if part is not self._part:
            self._rows, self._part = _read_part(part), part
        return self._rows[step]

    @cached_property
    def _index(self) -> tuple[dict[int, Path], dict[str, None]]:
        import pyarrow.parquet as pq

        parts: dict[int, Path] = {}
        layers: dict[str, None] = {}
        for part in part_files(self._folder):
            with pq.ParquetFile(part) as file:
                table = file.read(columns=["step", "layer"])
            parts |= dict.fromkeys(table["step"].unique().to_pylist(), part)
            layers |= dict.fromkeys(table["layer"].unique().to_pylist())
        layers.pop(WHOLE_MODEL, None)
        return parts, layers


def _read_part(path: Path) -> dict[int, dict[str, Float64[np.ndarray, "k k"]]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        table = file.read()
    sizes = table["k"].to_numpy()
    flat = table["values"].combine_chunks().flatten().to_numpy()
    ends = np.cumsum(sizes.astype(np.int64) ** 2).tolist()
    columns = zip(
        table["step"].to_pylist(), table["layer"].to_pylist(), sizes.tolist(), ends, strict=True
    )
    steps: dict[int, dict[str, Float64[np.ndarray, "k k"]]] = {}
    for step, layer, k, end in columns:
        steps.setdefault(step, {})[layer] = flat[end - k * k : end].reshape(k, k)
    return steps
