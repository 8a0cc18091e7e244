"""Timing side by side: every contender once a turn, nobody always first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from gafscope.errors import UserError, unknown_name

Call = Callable[[], Any]
Tick = Callable[[], Any]

WARM_UPS = 2
"""Untimed turns before the timed ones."""


@final
@dataclass(frozen=True, eq=False)
class WarmUp:
    """What the untimed turns showed.

    Attributes:
        results: What each contender that goes on returned.
        notes: Why the others do not.
    """

    results: dict[str, Any]
    notes: dict[str, str]


def warm_up(
    calls: Mapping[str, Call], bases: Mapping[str, str], limit: float, device: str, tick: Tick
) -> WarmUp:
    """Run every contender twice, and drop those that fail or are far too slow.

    Args:
        calls: Contenders by name; each base before what is compared with it.
        bases: Contender -> the contender that it is compared with.
        limit: Most times its base's time that a contender may take, the faster of the two.
        device: "cpu" or "cuda".
        tick: Called after each turn.

    Returns:
        Results and notes; every contender is in exactly one of them.
    """
    fastest: dict[str, float] = {}
    results: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for _ in range(WARM_UPS):
        for name in (name for name in calls if name not in notes):
            results.pop(name, None)  # or two results would be held at once
            try:
                seconds, results[name] = timed(calls[name], device)
            except Exception as error:
                # A peer may fail in any way; the table says how, and the others go on.
                notes[name] = _reason(error)
            else:
                fastest[name] = min(seconds, fastest.get(name, math.inf))
        tick()
    for name in list(results):
        ratio = fastest[name] / fastest.get(bases[name], math.nan)
        if not ratio <= limit:
            del results[name]
            base = bases[name]
            slow = f"not timed: {ratio:.3g} times {base}, more than the limit of {limit:g}"
            notes[name] = notes.get(base, slow)
    return WarmUp(results, notes)


def take_turns(
    calls: Mapping[str, Call], repeats: int, device: str, tick: Tick
) -> dict[str, np.ndarray]:
    """Time every contender once a turn; who goes first moves on by one each turn.

    Args:
        calls: Contenders by name.
        repeats: Number of turns.
        device: "cpu" or "cuda".
        tick: Called after each turn.

    Returns:
        Contender -> seconds, (repeats,).
    """
    names = list(calls)
    seconds = {name: np.empty(repeats) for name in names}
    for turn in range(repeats):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            seconds[name][turn] = timed(calls[name], device)[0]
        tick()
    return seconds


def timed(call: Call, device: str) -> tuple[float, Any]:
    """Run a call and time it, on CUDA by events on the device.

    Args:
        call: What is timed.
        device: "cpu" or "cuda".

    Returns:
        Seconds, and what the call returned.
    """
    if device != "cuda":
        started = time.perf_counter()
        result = call()
        return time.perf_counter() - started, result
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    result = call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000, result


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Use this many processor threads inside the block.

    Args:
        threads: Their number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quartiles(column: str, values: np.ndarray) -> dict[str, float]:
    """Summarise the turns.

    Args:
        column: Name of the median's column.
        values: One number a turn.

    Returns:
        `column`, `column_low` and `column_high`: the median and the quartiles.
    """
    low, middle, high = map(float, np.quantile(values, (0.25, 0.5, 0.75)))
    return {column: middle, f"{column}_low": low, f"{column}_high": high}


def check_turns(repeats: int, limit: float, device: str, threads: int) -> None:
    """Check the settings that every cost table shares.

    Args:
        repeats: Timed turns.
        limit: As in `warm_up`.
        device: "cpu" or "cuda".
        threads: Processor threads.

    Raises:
        UserError: If a number is below 1 or the device cannot be used.
    """
    for name, value in (("repeats", repeats), ("limit", limit), ("threads", threads)):
        if not value >= 1:
            raise UserError(f"cost needs {name} of at least 1, but found {name}={value}.")
    if device not in ("cpu", "cuda"):
        raise unknown_name("device", device, ("cpu", "cuda"))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"Cannot use device '{device}': {reason}. Use --device cpu.") from error


def _reason(error: Exception) -> str:
    first_line = (str(error).strip() or repr(error)).splitlines()[0]
    if isinstance(error, UserError):
        return first_line
    return f"failed: {type(error).__name__}: {first_line}"
