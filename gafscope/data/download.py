"""Fetching a data archive: with progress, resumable, checked, and unpacked in one move."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gafscope.data.files import file_md5
from gafscope.data.unpack import unpack
from gafscope.errors import UserError

OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/"
"""Where the authors of CIFAR publish it."""

_BLOCK = 1 << 18
_TIMEOUT_SECONDS = 60.0
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, OSError)


def install(
    root: Path, *, base_url: str, archive: str, md5: str, folder: str, files: Collection[str]
) -> None:
    """Fetch an archive and put its files into `root / folder`.

    The download goes to `<archive>.part`, which a later call continues. The folder appears
    complete or not at all.

    Args:
        root: The data folder; made if need be.
        base_url: Address that the archive's name is appended to, http or https.
        archive: The archive's name.
        md5: The archive's checksum.
        folder: The folder inside the archive.
        files: The files inside that folder; no others are unpacked.

    Raises:
        UserError: The address is wrong, the connection fails, the content is not the expected one
            or the folder cannot be written.
    """
    if not base_url.startswith(("http://", "https://")):
        raise UserError(
            f"download_url must start with http:// or https://, found '{base_url}': "
            "give the address of the folder that holds the archive."
        )
    part = root / f"{archive}.part"
    try:
        root.mkdir(parents=True, exist_ok=True)
        fetch(f"{base_url.rstrip('/')}/{archive}", part, md5)
        unpack(part, root, folder, files)
        part.unlink()
    except OSError as error:
        raise UserError(
            f"'{root}' cannot be written ({error}): name a folder on a disk with free space that "
            "you may write to, with --data-dir (data_dir=...)."
        ) from error


def fetch(url: str, part: Path, md5: str) -> None:
    """Complete the file `part` from `url` and check it.

    Args:
        url: The whole address.
        part: The file to complete; what it holds already is not fetched again where the server
            can resume.
        md5: The expected checksum. On a mismatch `part` is deleted.

    Raises:
        UserError: The transfer failed, or the checksum is wrong.
    """
    if part.exists() and file_md5(part) == md5:
        return
    _transfer(url, part)
    found = file_md5(part)
    if found != md5:
        size = part.stat().st_size
        part.unlink()
        raise UserError(
            f"What '{url}' sent is not the official archive: expected md5 {md5}, found {found} "
            f"({size:,} bytes). The download was deleted; try again, or another download_url."
        )


def _transfer(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    with _open(url, part, have) as response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(
            initial=have, total=total, unit="B", unit_scale=True, desc=part.stem, disable=None
        )
        with bar, part.open("ab" if resumed else "wb") as file:
            while block := _read(response, url, part):
                file.write(block)
                bar.update(len(block))
    received = part.stat().st_size
    if total is not None and received < total:
        raise _cut(url, part, f"after {received:,} of {total:,} bytes")


def _open(url: str, part: Path, have: int) -> Any:
    headers = {"User-Agent": "gafscope"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()
            raise UserError(
                f"The partial download '{part}' is not a piece of '{url}' and was deleted: "
                "try again."
            ) from error
        raise UserError(
            f"'{url}' answered {error.code} {error.reason}: check download_url, the address of the "
            "folder that holds the archive."
        ) from error
    except _NETWORK_ERRORS as error:
        raise UserError(
            f"'{url}' cannot be reached ({error}): check the network, or name another address "
            "with download_url."
        ) from error


def _read(response: Any, url: str, part: Path) -> bytes:
    # Apart from the writing, so that a full disk is not reported as a broken connection.
    try:
        return response.read(_BLOCK)
    except _NETWORK_ERRORS as error:
        raise _cut(url, part, f"({error})") from error


def _cut(url: str, part: Path, where: str) -> UserError:
    return UserError(
        f"The connection to '{url}' was cut {where}: what came is kept in '{part}'; "
        "run the same again to continue."
    )
