"""Turns: who goes first moves on, and who cannot keep up is dropped with a reason."""

from __future__ import annotations

import time

import numpy as np
import pytest

from gafscope.analyses.cost_turns import quartiles, take_turns, timed, warm_up
from gafscope.errors import UserError


def test_who_goes_first_moves_on():
    order: list[str] = []
    ticks: list[int] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = take_turns(calls, 4, "cpu", lambda: ticks.append(1))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert len(ticks) == 4
    assert {name: values.shape for name, values in seconds.items()} == dict.fromkeys("abc", (4,))


def test_time_and_result():
    seconds, result = timed(lambda: time.sleep(0.02) or "done", "cpu")
    assert 0.02 <= seconds < 1
    assert result == "done"


def test_warm_up_sorts_out():
    seen: list[str] = []

    def work(name: str, seconds: float) -> str:
        seen.append(name)
        time.sleep(seconds)
        return f"{name} done"

    def fail() -> None:
        seen.append("broken")
        raise UserError("Cannot do this.")

    def first_slow() -> str:
        return work("compiled", 0.001 if "compiled" in seen else 0.2)

    calls = {
        "plain": lambda: work("plain", 0.001),
        "slow": lambda: work("slow", 0.1),
        "broken": fail,
        "compiled": first_slow,
    }
    warm = warm_up(calls, dict.fromkeys(calls, "plain"), 20, "cpu", lambda: None)
    # The faster of the two turns counts: the first one may compile or calibrate.
    assert warm.results == {"plain": "plain done", "compiled": "compiled done"}
    assert warm.notes["broken"] == "Cannot do this."
    assert "times plain, more than the limit of 20" in warm.notes["slow"]
    assert (seen.count("plain"), seen.count("broken")) == (2, 1)


def test_what_is_compared_with_a_failure_is_dropped():
    def fail() -> None:
        raise MemoryError("too large")

    calls = {"plain": fail, "loop": lambda: 1}
    warm = warm_up(calls, dict.fromkeys(calls, "plain"), 20, "cpu", lambda: None)
    assert warm.results == {}
    assert set(warm.notes.values()) == {"failed: MemoryError: too large"}


def test_quartiles():
    assert quartiles("ratio", np.arange(5.0)) == pytest.approx(
        {"ratio": 2, "ratio_low": 1, "ratio_high": 3}
    )
