from __future__ import annotations

import pytest

from gafscope.live.throttle import Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("cost", [0.01, 0.2, 3.0])
def test_the_share_is_never_passed(cost: float) -> None:
    """A loop of steps of 0.05 s that draws whenever it may."""
    clock = Clock()
    throttle = Throttle(0.02, 0.5, clock)
    with throttle.drawing():  # what the loop begins with does not count, but is an estimate
        clock.now += cost
    began, spent, drawings = clock.now, 0.0, 0
    for _ in range(10_000):
        clock.now += 0.05
        with throttle.spend():
            clock.now += 0.0001
        spent += 0.0001
        if throttle.due:
            with throttle.drawing():
                clock.now += cost
            spent += cost
            drawings += 1
        assert spent <= 0.02 * (clock.now - began) + 1e-6
    # And the room is used: at most half a second or the price lies between two drawings.
    assert drawings >= 0.7 * (clock.now - began) / max(0.5, cost / 0.02)


def test_a_dear_drawing_makes_the_next_one_rare() -> None:
    clock = Clock()
    throttle = Throttle(0.1, 0.5, clock)
    for cost, wait in [(1.0, 10.0), (0.01, 0.5), (2.0, 20.0)]:
        with throttle.drawing():
            clock.now += cost
        clock.now += 0.99 * wait
        assert not throttle.due
        clock.now += 0.02 * wait
        assert throttle.due


def test_time_spent_between_drawings_is_paid_for() -> None:
    clock = Clock()
    throttle = Throttle(0.1, 0.5, clock)
    with throttle.spend():
        clock.now += 1.0
    clock.now += 8.5
    assert not throttle.due
    clock.now += 1.0
    assert throttle.due


def test_a_first_drawing_may_stand_for_dearer_ones() -> None:
    clock = Clock()
    throttle = Throttle(0.1, 0.5, clock)
    with throttle.drawing(times=3.0):
        clock.now += 1.0
    clock.now += 29.0
    assert not throttle.due
    clock.now += 1.5
    assert throttle.due
