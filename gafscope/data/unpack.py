"""Unpacking a tar archive: expected files only, nothing outside the folder, all or nothing."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from gafscope.errors import UserError


def unpack(archive: Path, root: Path, folder: str, files: Collection[str]) -> None:
    """Unpack `folder`'s expected files into `root / folder`.

    Everything is unpacked beside its destination first and then renamed. Where the folder exists
    already, only the files that it lacks are moved in.

    Args:
        archive: A tar file, compressed or not.
        root: Where the folder belongs.
        folder: The folder inside the archive.
        files: The files that are wanted from that folder; others stay in the archive.

    Raises:
        UserError: The archive is damaged, lacks a file, or has a member that is a link or a device
            or lies outside the folder; nothing is put into place then.
    """
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=root) as temporary:
        try:
            with tarfile.open(archive) as tar:
                members = _wanted(tar, archive, folder, files)
                tar.extractall(temporary, members, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise UserError(
                f"'{archive}' cannot be unpacked ({error}): delete it and download it again."
            ) from error
        _move(Path(temporary) / folder, root / folder, files)


def _wanted(
    tar: tarfile.TarFile, archive: Path, folder: str, files: Collection[str]
) -> list[tarfile.TarInfo]:
    members = {}
    for member in tar:
        path = PurePosixPath(member.name)
        inside = path.parts[:1] == (folder,) and ".." not in path.parts
        if not inside or not (member.isfile() or member.isdir()):
            raise UserError(
                f"'{archive}' has the member '{member.name}', which is a link or a device or lies "
                f"outside '{folder}/': such an archive is not unpacked; delete it and download "
                "the official one."
            )
        if len(path.parts) == 2 and path.name in files and member.isfile():
            members[path.name] = member
    lacking = sorted(set(files) - set(members))
    if lacking:
        raise UserError(
            f"'{archive}' lacks {', '.join(lacking)}: delete it and download the official one."
        )
    return list(members.values())


def _move(source: Path, target: Path, files: Collection[str]) -> None:
    if not target.exists():
        source.rename(target)
        return
    for name in files:
        if not (target / name).exists():
            (source / name).rename(target / name)
