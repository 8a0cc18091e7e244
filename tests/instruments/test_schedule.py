from __future__ import annotations

import pytest

from gafscope.errors import UserError
from gafscope.instruments import AtSteps, Every, Schedule, linear, logarithmic


def due(schedule, steps=1200):
    assert isinstance(schedule, Schedule)
    return [step for step in range(steps) if schedule.due(step)]


def test_every_nth_step():
    assert due(Every(4), 10) == [0, 4, 8]


def test_given_steps_in_any_order():
    assert due(AtSteps([7, 2, 2])) == [2, 7]


def test_linear_spaces_evenly_and_includes_both_ends():
    assert due(linear(5, 25, 3)) == [5, 15, 25]
    assert due(linear(0, 2, 9)) == [0, 1, 2]


def test_logarithmic_keeps_the_ratio():
    assert due(logarithmic(2, 32, 5)) == [2, 4, 8, 16, 32]
    steps = due(logarithmic(1, 1000, 20))
    assert steps[0] == 1
    assert steps[-1] == 1000
    assert len(steps) < 20  # 1.4 and 1 are the same step


@pytest.mark.parametrize(
    "make",
    [
        lambda: Every(0),
        lambda: Every(True),
        lambda: Every(1.5),
        lambda: AtSteps([]),
        lambda: AtSteps([-1]),
        lambda: linear(5, 5, 2),
        lambda: linear(0, 5, 1),
        lambda: logarithmic(0, 5, 2),
    ],
)
def test_what_is_no_schedule_is_refused(make):
    with pytest.raises(UserError):
        make()
