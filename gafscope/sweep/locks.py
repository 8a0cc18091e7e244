"""One process at a time in a trial's folder.

A worker that was stopped for long (a machine that slept) is given up for dead and its trial run
again. If it wakes up while that goes on, the two must not write the same files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gafscope.records.files import write_failure


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, which the system frees when a process dies.

    Args:
        path: The file; it is made where it is missing. Where locks do not exist nothing is locked.

    Raises:
        UserError: If the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise write_failure(path, error, "The trial was not begun.") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
