from __future__ import annotations

import builtins
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gafscope.data.safe_pickle import load_arrays
from gafscope.errors import UserError


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def python2_array() -> bytes:
    """The opcodes in which Python 2 wrote {'data': uint8 array [[1, 200]]}; strings are bytes."""
    minus_one = b"J\xff\xff\xff\xff"
    state = b"(K\x03U\x01|NNN" + minus_one + minus_one + b"K\x00tb"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR" + state
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    return b"\x80\x02}U\x04data" + array + b"(K\x01(K\x01K\x02t" + dtype + b"\x89U\x02\x01\xc8tbs."


def test_python2_arrays_are_read():
    content = load_arrays(python2_array(), "demo")
    assert content["data"].dtype == np.uint8
    assert content["data"].tolist() == [[1, 200]]


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_and_plain_values_are_read(protocol: int):
    values = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "name": "x"}
    content = load_arrays(pickle.dumps(values, protocol=protocol), "demo")
    assert np.array_equal(content.pop("data"), values.pop("data"))
    assert content == values


@pytest.mark.parametrize("protocol", range(6))
def test_a_command_is_refused_and_does_not_run(protocol: int, tmp_path: Path):
    target = tmp_path / "ran"
    data = pickle.dumps({"data": Call(os.system, f"touch {target}")}, protocol=protocol)
    with pytest.raises(UserError, match=r"'demo' is not a pickle of NumPy arrays.*system"):
        load_arrays(data, "demo")
    assert not target.exists()


@pytest.mark.parametrize(
    "function",
    [builtins.eval, builtins.exec, builtins.getattr, builtins.open, np.load, np.fromfile],
)
def test_no_other_function_is_admitted(function: Any):
    with pytest.raises(UserError, match="it asks for"):
        load_arrays(pickle.dumps(Call(function, "1")), "demo")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy.core.multiarray", "_reconstruct.__class__"),
        ("numpy.core.multiarray", "os.system"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "dtype.__subclasses__"),
        ("numpy", "core.multiarray._reconstruct"),
        ("numpy", "save"),
        ("numpy.core", "multiarray"),
        ("builtins", "eval"),
        ("_codecs", "encode"),
        ("copyreg", "_reconstructor"),
        ("importlib", "import_module"),
    ],
)
def test_names_are_compared_whole(module: str, name: str):
    by_opcode = f"c{module}\n{name}\n.".encode()
    # The stack form of protocol 4 is the one in which pickle follows dots.
    parts = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    for data in (by_opcode, b"\x80\x04" + parts + b"\x93."):
        with pytest.raises(UserError, match="it asks for"):
            load_arrays(data, "demo")


def test_attributes_of_what_is_admitted_cannot_be_set():
    data = b"cnumpy\nndarray\nN}S'evil'\nK\x01s\x86b."
    with pytest.raises(UserError, match="demo"):
        load_arrays(data, "demo")
    assert not hasattr(np.ndarray, "evil")


@pytest.mark.parametrize("data", [b"", b"hello", python2_array()[:-8], b"\x80\x04R."])
def test_damage_is_a_clear_error(data: bytes):
    with pytest.raises(UserError, match="replace it by the official file"):
        load_arrays(data, "demo")
