from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from gafscope.data.unpack import unpack
from gafscope.errors import UserError


def write_tar(path: Path, *members: tarfile.TarInfo | str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = 3 if info.isfile() else 0
            tar.addfile(info, io.BytesIO(b"abc"))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def unpacked(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_only_the_expected_files_come_out(tmp_path: Path, root: Path):
    directory = special("d", tarfile.DIRTYPE)
    archive = write_tar(tmp_path / "a", directory, "d/one", "d/two", "d/readme", "d/sub/one")
    unpack(archive, root, "d", {"one", "two"})
    assert unpacked(root) == ["d", "d/one", "d/two"]
    assert (root / "d/one").read_bytes() == b"abc"


@pytest.mark.parametrize(
    "bad",
    [
        "../escape",
        "/escape",
        "d/../../escape",
        "other/escape",
        special("d/one", tarfile.SYMTYPE, "/etc/passwd"),
        special("d/link", tarfile.SYMTYPE, "../../escape"),
        special("d/link", tarfile.LNKTYPE, "../../escape"),
        special("d/pipe", tarfile.FIFOTYPE),
        special("d/device", tarfile.CHRTYPE),
    ],
    ids=lambda bad: bad if isinstance(bad, str) else bad.name,
)
def test_members_that_escape_are_refused_and_nothing_is_left(
    tmp_path: Path, root: Path, bad: tarfile.TarInfo | str
):
    archive = write_tar(tmp_path / "a", "d/one", bad)
    with pytest.raises(UserError, match="link or a device or lies outside"):
        unpack(archive, root, "d", {"one"})
    assert unpacked(root) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "root"]


def test_a_lacking_file_leaves_nothing(tmp_path: Path, root: Path):
    archive = write_tar(tmp_path / "a", "d/one")
    with pytest.raises(UserError, match="lacks three, two"):
        unpack(archive, root, "d", {"one", "two", "three"})
    assert unpacked(root) == []


def test_an_existing_folder_gets_only_what_it_lacks(tmp_path: Path, root: Path):
    (root / "d").mkdir()
    (root / "d/one").write_bytes(b"mine")
    unpack(write_tar(tmp_path / "a", "d/one", "d/two"), root, "d", {"one", "two"})
    assert (root / "d/one").read_bytes() == b"mine"
    assert (root / "d/two").read_bytes() == b"abc"


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_damaged_archive_is_a_clear_error(tmp_path: Path, root: Path, keep: int):
    whole = write_tar(tmp_path / "a", *(f"d/{number}" for number in range(200)))
    whole.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cannot be unpacked|lacks"):
        unpack(whole, root, "d", {"0"})
    assert unpacked(root) == []
