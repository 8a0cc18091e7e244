from __future__ import annotations

from pathlib import Path

import pytest
from cifar_stand_ins import FakeCifar, Server, md5, tar_bytes

from gafscope.data.download import install
from gafscope.errors import UserError


def fetch(root: Path, server: Server, fake: FakeCifar, checksum: str | None = None) -> None:
    install(
        root,
        base_url=server.url,
        archive="a.tar.gz",
        md5=checksum or fake.layout.archive_md5,
        folder=fake.layout.folder,
        files=fake.files,
    )


def installed(root: Path, fake: FakeCifar) -> bool:
    folder = root / fake.layout.folder
    return all((folder / name).read_bytes() == data for name, data in fake.files.items())


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.fixture(autouse=True)
def offer(server: Server, fake_cifar: FakeCifar) -> None:
    server.files["a.tar.gz"] = fake_cifar.archive


def test_a_download_is_unpacked_and_leaves_nothing_else(
    tmp_path: Path, server: Server, fake_cifar: FakeCifar
):
    fetch(tmp_path / "new" / "root", server, fake_cifar)
    assert installed(tmp_path / "new" / "root", fake_cifar)
    assert names(tmp_path / "new" / "root") == [fake_cifar.layout.folder]
    assert server.asked == [None]


def test_a_cut_connection_is_resumed(tmp_path: Path, server: Server, fake_cifar: FakeCifar):
    server.cut_after = 1000
    with pytest.raises(UserError, match=r"cut after 1,000 of .*run the same again"):
        fetch(tmp_path, server, fake_cifar)
    assert names(tmp_path) == ["a.tar.gz.part"]
    server.cut_after = None
    fetch(tmp_path, server, fake_cifar)
    assert server.asked == [None, "bytes=1000-"]
    assert installed(tmp_path, fake_cifar)


def test_a_server_without_ranges_starts_over(tmp_path: Path, server: Server, fake_cifar: FakeCifar):
    server.ranges = False
    (tmp_path / "a.tar.gz.part").write_bytes(b"x" * 500)
    fetch(tmp_path, server, fake_cifar)
    assert server.asked == ["bytes=500-"]
    assert installed(tmp_path, fake_cifar)


def test_a_complete_part_needs_no_network(tmp_path: Path, server: Server, fake_cifar: FakeCifar):
    (tmp_path / "a.tar.gz.part").write_bytes(fake_cifar.archive)
    fetch(tmp_path, server, fake_cifar)
    assert server.asked == []
    assert installed(tmp_path, fake_cifar)


def test_a_part_that_is_too_long_is_deleted(tmp_path: Path, server: Server, fake_cifar: FakeCifar):
    (tmp_path / "a.tar.gz.part").write_bytes(fake_cifar.archive + b"x")
    with pytest.raises(UserError, match=r"not a piece of .* was deleted"):
        fetch(tmp_path, server, fake_cifar)
    assert names(tmp_path) == []
    fetch(tmp_path, server, fake_cifar)
    assert installed(tmp_path, fake_cifar)


def test_a_wrong_checksum_deletes_the_download(
    tmp_path: Path, server: Server, fake_cifar: FakeCifar
):
    wrong = "0" * 32
    with pytest.raises(UserError, match=f"expected md5 {wrong}, found .*deleted"):
        fetch(tmp_path, server, fake_cifar, wrong)
    assert names(tmp_path) == []


def test_an_escaping_member_is_refused(tmp_path: Path, server: Server, fake_cifar: FakeCifar):
    root = tmp_path / "root"
    evil = tar_bytes({f"{fake_cifar.layout.folder}/train": b"x", "../escaped": b"x"})
    server.files["a.tar.gz"] = evil
    with pytest.raises(UserError, match="escaped"):
        fetch(root, server, fake_cifar, md5(evil))
    assert names(tmp_path) == ["root"]
    assert names(root) == ["a.tar.gz.part"]


def test_a_missing_archive_and_a_dead_server_name_the_address(
    tmp_path: Path, server: Server, fake_cifar: FakeCifar
):
    server.files.clear()
    with pytest.raises(UserError, match=r"a\.tar\.gz' answered 404"):
        fetch(tmp_path, server, fake_cifar)
    server.url = "http://127.0.0.1:9"
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.* cannot be reached"):
        fetch(tmp_path, server, fake_cifar)


def test_other_schemes_are_refused(tmp_path: Path, server: Server, fake_cifar: FakeCifar):
    server.url = tmp_path.as_uri()
    with pytest.raises(UserError, match="must start with http"):
        fetch(tmp_path, server, fake_cifar)


def test_a_folder_that_cannot_be_made_is_a_clear_error(
    tmp_path: Path, server: Server, fake_cifar: FakeCifar
):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fetch(tmp_path / "file" / "root", server, fake_cifar)
