"""Text, read byte by byte: windows to predict the next byte in, each with the task it is from."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from gafscope.data.noise import symmetric_noise
from gafscope.data.partition import stratified_holdout
from gafscope.data.splits import Dataset, Split
from gafscope.errors import UserError

BYTES = 256
"""The size of the vocabulary."""
WINDOWS = 16
"""Windows of a passage; a passage lies in one split as a whole."""
_MODULES = ("argparse", "dataclasses", "difflib", "doctest", "inspect", "statistics")
_TABLES = ("breast_cancer.csv", "digits.csv.gz", "wine_data.csv", "iris.csv")
_LEAST_PASSAGES = 10
_TEST_SHARE = 0.2
_TEST_SEED = 0


def text(
    *,
    validation: float,
    label_noise: float,
    seed: int,
    path: str | Path | None = None,
    context: int = 64,
    size: int | None = None,
) -> Dataset:
    """Cut texts into windows whose targets are their own bytes, one further on.

    A text is cut into passages of 16 windows that do not overlap, and each passage goes to one
    split, in proportion to the tasks. The test passages do not depend on `seed`.

    Args:
        validation: Share of the passages that are left after the test's, held out.
        label_noise: Share of the training targets moved to another byte; the inputs stay.
        seed: Decides the validation passages and the noise.
        path: As in `read_text`.
        context: Bytes of a window.
        size: Bytes that are used of each text, from its beginning; None for all.

    Returns:
        int64 inputs and targets (n, context) in 0..255, and `tasks`, the number of the text that
        each window is from.

    Raises:
        UserError: A size that is not positive, or texts that are missing or too short.
    """
    for name, value in (("context", context), ("size", size)):
        if value is not None and value < 1:
            raise UserError(
                f"The {name} of 'text' must be at least 1 byte, found {value}: raise it."
            )
    passages_pl, tasks_p = _passages(read_text(path), context, size)
    rest, test = stratified_holdout(tasks_p, _TEST_SHARE, torch.Generator().manual_seed(_TEST_SEED))
    generator = torch.Generator().manual_seed(seed)
    kept, held = stratified_holdout(tasks_p[rest], validation, generator)

    def split(chosen: Tensor, noise: float = 0.0) -> Split:
        inputs = passages_pl[chosen, :-1].reshape(-1, context)
        true = passages_pl[chosen, 1:].reshape(-1, context)
        given = true
        if noise:
            given = symmetric_noise(true.flatten(), noise, BYTES, generator).view_as(true)
        return Split(inputs, given, true, tasks=tasks_p[chosen].repeat_interleave(WINDOWS))

    train = split(rest[kept], label_noise)
    return Dataset("text", train, split(rest[held]), split(test), BYTES, (context,))


def read_text(path: str | Path | None = None) -> dict[str, bytes]:
    """Read texts of different kinds, each of which is a task of its own.

    Without a path, what is installed with Python and with scikit-learn. It is the same wherever
    the versions of both are, and differs a little between versions:

    - "documentation": `pydoc_data.topics`, from which `help()` tells about the language (Copyright
      Python Software Foundation, PSF License Version 2);
    - "source": six modules of the standard library (the same licence);
    - "tables": scikit-learn's small CSV files of numbers (BSD 3-Clause; the data of the UCI
      Machine Learning Repository, CC BY 4.0).

    Args:
        path: A file, which is one task, or a folder, each of whose files is one; None for the
            three above.

    Returns:
        Task name -> bytes, in the order of the names.

    Raises:
        UserError: No such file or folder, an empty folder, or a file that cannot be read.
    """
    if path is None:
        return _installed()
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(
            f"The text '{place}' does not exist: name a file or a folder of files with --data-dir "
            "(data_dir=...), or leave it out for texts that are installed with Python."
        )
    files = [place] if place.is_file() else _files(place)
    return {file.name: _read(file) for file in files}


def _files(folder: Path) -> list[Path]:
    files = sorted(
        entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")
    )
    if not files:
        raise UserError(f"The folder '{folder}' holds no files: put texts there, one a task.")
    return files


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if file.suffix == ".gz" else content
    except OSError as error:
        raise UserError(f"The text '{file}' cannot be read ({error}): replace it.") from error


def _installed() -> dict[str, bytes]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise _missing("pydoc_data") from error
    tables = _source_file("sklearn").parent / "datasets" / "data"
    return {
        "documentation": "\n".join(topics[name] for name in sorted(topics)).encode(),
        "source": b"\n".join(_read(_source_file(name)) for name in _MODULES),
        "tables": b"\n".join(_read(tables / name) for name in _TABLES),
    }


def _source_file(name: str) -> Path:
    """Find a module's file without importing it, which may take long."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise _missing(name)
    return Path(found.origin)


def _missing(name: str) -> UserError:
    return UserError(
        f"The source of the module '{name}', which texts are taken from, is not installed with "
        "this Python: give a text of your own with --data-dir (data_dir=...)."
    )


def _passages(texts: dict[str, bytes], context: int, size: int | None) -> tuple[Tensor, Tensor]:
    """Give passages (p, l) of l = 16 context + 1 bytes, and their tasks (p,)."""
    length = WINDOWS * context + 1
    parts, tasks = [], []
    for task, (name, content) in enumerate(texts.items()):
        count = len(content[:size]) // length
        if not count:
            raise UserError(
                f"The text '{name}' has {len(content[:size]):,} bytes, less than a passage of "
                f"{length:,} ({WINDOWS} windows of {context}): lengthen it or lower the option "
                "'context'."
            )
        # The copy is writable, as torch wants it.
        whole = torch.frombuffer(bytearray(content[: count * length]), dtype=torch.uint8)
        parts.append(whole.view(count, length).long())
        tasks.append(torch.full((count,), task))
    passages_pl = torch.cat(parts)
    if len(passages_pl) < _LEAST_PASSAGES:
        raise UserError(
            f"The text has {len(passages_pl)} passages of {length:,} bytes ({WINDOWS} windows of "
            f"{context}), too few to hold some out: give at least {_LEAST_PASSAGES * length:,} "
            "bytes, or lower the option 'context'."
        )
    return passages_pl, torch.cat(tasks)
