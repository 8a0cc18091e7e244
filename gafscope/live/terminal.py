"""The live view of a terminal: one progress line."""

from __future__ import annotations

from typing import Any, TextIO, final

from tqdm import tqdm

from gafscope.instruments import Record
from gafscope.live.words import Words

_REFRESH = 0.5


@final
class ProgressLine:
    """Writes one line that renews itself, and nothing where the output is no terminal.

    Args:
        file: Where to write; None is the standard error stream.
    """

    def __init__(self, file: TextIO | None = None):
        self._file = file
        self._words = Words()
        self._step = 0
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> ProgressLine:
        self._bar = tqdm(
            initial=self._step,
            desc="watch",
            unit=" steps",
            bar_format="{desc}: {n_fmt} steps [{elapsed}, {rate_fmt}]{postfix}",
            file=self._file,
            mininterval=_REFRESH,
            # A log file is not filled with lines that the run's folder holds anyway.
            disable=None,
            dynamic_ncols=True,
        )
        return self

    def __call__(self, record: Record) -> None:
        """Take a record in.

        Args:
            record: The record.
        """
        assert self._bar is not None
        if self._bar.disable:
            return
        self._words.add(record)
        self._bar.set_postfix_str(str(self._words), refresh=False)
        self._bar.update(record.step + 1 - self._step)
        self._step = record.step + 1

    def __exit__(self, *error: object) -> None:
        assert self._bar is not None
        self._bar.close()
