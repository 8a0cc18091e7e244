"""Ctrl-C and SIGTERM end a run between two steps, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, final

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that SIGTERM has ended, as a shell gives it."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that end a run."""


@final
class Interrupt:
    """While entered, a signal only raises a flag; a second Ctrl-C interrupts at once.

    A second SIGTERM does not: who ends a job often sends it to a process and to its parent, which
    passes it on. Outside the main thread, where signals cannot be caught, nothing is changed.

    Args:
        patient: Let further Ctrl-Cs wait as well. Under a launcher every rank gets two of them,
            one from the terminal and one from the launcher.

    Attributes:
        requested: The signal that is to end the run: SIGTERM, if it came, else SIGINT; 0 for none.
    """

    def __init__(self, patient: bool = False):
        self.requested = 0
        self._patient = patient
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested and not self._patient:
            raise KeyboardInterrupt
        self.requested = max(self.requested, number)


def end_by(number: int) -> None:
    """End a run as a signal asks for.

    Args:
        number: SIGINT, SIGTERM, or 0 for none.

    Raises:
        KeyboardInterrupt: For SIGINT.
        SystemExit: For SIGTERM, with the code that a shell gives.
    """
    if number == signal.SIGTERM:
        raise SystemExit(TERMINATED)
    if number:
        raise KeyboardInterrupt
