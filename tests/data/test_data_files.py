from __future__ import annotations

from pathlib import Path

import pytest

from gafscope.data.files import file_md5, find_place, missing_file, read_checked
from gafscope.errors import UserError

ABC = "900150983cd24fb0d6963f7d28e17f72"


def test_the_folder_is_the_argument_then_the_variable_then_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("GAFSCOPE_DATA", str(tmp_path / "named"))
    assert find_place(tmp_path / "absent").root == tmp_path / "absent"
    assert find_place(None).root == tmp_path / "named"
    monkeypatch.setenv("GAFSCOPE_DATA", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_place(None).root == tmp_path / ".cache/gafscope/data"


def test_a_missing_file_says_which_where_and_what_to_do(tmp_path: Path):
    place = find_place(tmp_path)
    message = str(missing_file(tmp_path / "f" / "train", place, "Do this"))
    for part in (
        "'train'",
        str(tmp_path / "f" / "train"),
        "Do this",
        "--data-dir",
        "GAFSCOPE_DATA",
    ):
        assert part in message
    assert "given as data_dir" in message


def test_only_the_right_content_is_given(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert file_md5(path) == ABC
    assert read_checked(path, ABC, "Fetch it") == b"abc"
    assert read_checked(path, None, "Fetch it") == b"abc"
    path.write_bytes(b"ab")
    with pytest.raises(UserError, match=f"expected md5 {ABC}, found [0-9a-f]{{32}}.*Fetch it"):
        read_checked(path, ABC, "Fetch it")


def test_a_folder_in_the_files_place_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        read_checked(tmp_path, ABC, "Fetch it")
