from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gafscope.errors import UserError
from gafscope.records.files import atomic_write, is_leftover, remove_leftovers


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse files above `size` bytes: a real, partial write failure."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("mode", "content"), [("wb", b"new\n"), ("w", "new\n")])
def test_replaces_the_file_and_leaves_nothing_else(tmp_path: Path, mode, content) -> None:
    path = tmp_path / "note"
    path.write_text("old")
    with atomic_write(path, mode) as file:
        file.write(content)
        assert path.read_text() == "old"
    assert path.read_bytes() == b"new\n"
    assert os.listdir(tmp_path) == ["note"]


def test_text_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "note", "w") as file:
        file.write("τ\n")
    assert (tmp_path / "note").read_bytes() == "τ\n".encode()


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), UserError("mine")])
def test_an_error_of_the_caller_passes_and_keeps_the_old_version(tmp_path: Path, error) -> None:
    path = tmp_path / "note"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as file:
        file.write(b"new")
        raise error
    assert caught.value is error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note"]


def test_full_disk_names_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_text("old")
    with (
        files_of_at_most(1000),
        pytest.raises(UserError, match=r"note: File too large\. The previous .* is intact"),
        atomic_write(path) as file,
    ):
        file.write(bytes(5000))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note"]


def test_full_disk_under_torch_save_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with files_of_at_most(1000), pytest.raises(UserError, match="File too large"):  # noqa: SIM117
        with atomic_write(path) as file:
            torch.save({"weights": torch.zeros(100_000)}, file)
    assert os.listdir(tmp_path) == []


def test_a_runtime_error_of_another_origin_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), atomic_write(tmp_path / "note"):
        raise RuntimeError("mine")


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="Read-only file system"), atomic_write(tmp_path / "note"):
        pass
    assert os.listdir(tmp_path) == []


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"), atomic_write(tmp_path / "a" / "note"):
        pass


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    writing = atomic_write(tmp_path / "note")
    writing.__enter__()  # and never left: the process was killed
    (tmp_path / ".hidden.tmp").touch()
    (tmp_path / "kept").touch()
    assert sum(map(is_leftover, os.listdir(tmp_path))) == 1
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden.tmp", "kept"]
    del writing
