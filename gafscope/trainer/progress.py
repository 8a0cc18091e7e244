"""One progress line: step, loss, accepted fraction, distance."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Any, final

from tqdm import tqdm

_REFRESH = 0.5
_SMOOTH = 0.95


@final
class Progress:
    """A bar that appears when a run takes more than two seconds.

    Args:
        shown: Whether to show it at all.
        start: Steps done already.
        steps: Steps in all.
        name: What stands before the bar.
    """

    def __init__(self, shown: bool, start: int, steps: int, name: str):
        # A log file gets a line now and then, not one for every refresh.
        interval = _REFRESH if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc=name,
            unit="step",
            delay=2.0,
            mininterval=interval,
            disable=not shown,
            dynamic_ncols=True,
            leave=False,
        )
        self._smooth: dict[str, float] = {}
        self._next = time.monotonic() + _REFRESH

    def update(self, **values: float) -> None:
        """Advance by one step.

        Args:
            **values: Numbers to show, smoothed over about 20 steps; NaN is passed over.
        """
        for name, value in values.items():
            if value == value:
                before = self._smooth.get(name, value)
                self._smooth[name] = _SMOOTH * before + (1 - _SMOOTH) * value
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _REFRESH
            shown = {name: f"{value:.3f}" for name, value in self._smooth.items()}
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def aside(self) -> AbstractContextManager[None]:
        """Clear the bar's line while something else is printed."""
        return tqdm.external_write_mode()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()
