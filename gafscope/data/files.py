"""Where data files are looked for, and reading them only when they are the right ones."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

from gafscope.errors import UserError

ENVIRONMENT_VARIABLE = "GAFSCOPE_DATA"
"""Names the data folder when no `data_dir` is given."""


@final
@dataclass(frozen=True)
class Place:
    """The one folder where data files are looked for.

    Attributes:
        root: The folder; it need not exist.
        origin: Why it is this folder, for error messages.
        download: Whether missing files may be fetched into it.
        download_url: Base address to fetch from; None for the official one.
    """

    root: Path
    origin: str
    download: bool = False
    download_url: str | None = None


def find_place(
    data_dir: str | Path | None, *, download: bool = False, download_url: str | None = None
) -> Place:
    """Choose the data folder: `data_dir`, else GAFSCOPE_DATA, else ~/.cache/gafscope/data.

    A folder that is named explicitly never falls back to another one.

    Args:
        data_dir: The folder, or None.
        download: Whether missing files may be fetched into it.
        download_url: Base address to fetch from; None for the official one.

    Returns:
        The place.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if data_dir is not None:
        root, origin = Path(data_dir), "given as data_dir"
    elif named:
        root, origin = Path(named), f"from {ENVIRONMENT_VARIABLE}"
    else:
        root, origin = Path("~/.cache/gafscope/data"), "the default"
    return Place(root.expanduser(), origin, download, download_url)


def missing_file(path: Path, place: Place, remedy: str) -> UserError:
    """Phrase the error for a file that is not where it should be.

    Args:
        path: The file.
        place: Where it was looked for.
        remedy: How to get it there; a sentence without its full stop.

    Returns:
        The error, ready to be raised.
    """
    return UserError(
        f"The file '{path.name}' was not found: looked for '{path}' (data folder '{place.root}', "
        f"{place.origin}). {remedy}, or name another data folder with --data-dir (data_dir=...) "
        f"or the environment variable {ENVIRONMENT_VARIABLE}."
    )


def read_checked(path: Path, md5: str | None, remedy: str) -> bytes:
    """Read a whole file, and give its content only if the checksum is right.

    Args:
        path: The file.
        md5: Its MD5 checksum, 32 hexadecimal digits; None where none was published.
        remedy: What to do about a wrong one; a sentence without its full stop.

    Returns:
        The content.

    Raises:
        UserError: The file cannot be read or is not the one expected.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error}): check its permissions.") from error
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 is not None and found != md5:
        raise UserError(
            f"'{path}' is truncated or altered: expected md5 {md5}, found {found} "
            f"({len(data):,} bytes). {remedy}."
        )
    return data


def file_md5(path: Path) -> str:
    """Give a file's MD5 checksum as 32 hexadecimal digits, without reading it in one piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
