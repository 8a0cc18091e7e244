"""Files that are either the old version or the new one, never half of each."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from gafscope.errors import UserError

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


@contextmanager
def atomic_write(
    path: str | os.PathLike[str], mode: Literal["wb", "w"] = "wb"
) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that takes its place once it is safely on the disk.

    Args:
        path: The file to write; its folder must exist.
        mode: `"wb"` for bytes, `"w"` for UTF-8 text with plain line ends.

    Yields:
        The temporary file, open for writing.

    Raises:
        UserError: The system refused (disk full, read-only folder ...). The previous version of
            `path` is untouched then, and the temporary file is removed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_write(folder / "note.txt", "w") as file:
        ...     _ = file.write("done")
        >>> [entry.name for entry in folder.iterdir()]
        ['note.txt']
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    encoding, newline = (None, None) if mode == "wb" else ("utf-8", "\n")
    try:
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        refusal = _refusal(error)
        if refusal is None:
            raise
        consequence = "The previous version of it, if there was one, is intact."
        raise write_failure(target, refusal, consequence) from error


def write_failure(path: Path, error: OSError, consequence: str) -> UserError:
    """Phrase the error for a file that the system did not let us write.

    Args:
        path: The file or folder concerned.
        error: What the system answered.
        consequence: What is lost and what is not, a full sentence.

    Returns:
        The error, ready to be raised.
    """
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(
        f"Cannot write {path}: {reason}. {consequence} "
        "Make room there or allow writing, or choose another folder, and run the command again."
    )


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed process left in `folder`.

    Args:
        folder: The folder to clean; its subfolders are left alone.
    """
    for entry in folder.iterdir():
        if is_leftover(entry.name):
            entry.unlink(missing_ok=True)


def is_leftover(name: str) -> bool:
    """Tell whether a file name is one of `atomic_write`'s temporary ones.

    Args:
        name: A file name without its folder.

    Returns:
        True for a temporary file.
    """
    return _LEFTOVER.fullmatch(name) is not None


def _refusal(error: BaseException) -> OSError | None:
    if isinstance(error, OSError):
        return error
    # torch.save hides the system's error behind a RuntimeError about positions in the archive.
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    return None
