from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from gafscope.aggregation import Gate, RandomSkip, Yoked
from gafscope.errors import UserError


@pytest.mark.parametrize(
    "stepped",
    [
        [True, False, True],
        (1, 0, 1),
        np.array([True, False, True]),
        pd.Series([True, False, True], index=[7, 8, 9]),
    ],
    ids=["list", "tuple", "array", "series"],
)
def test_yoked_steps_when_the_other_run_stepped(stepped):
    gate = Yoked(stepped)
    assert [gate.opens(step) for step in range(3)] == [True, False, True]
    assert isinstance(gate, Gate)


def test_yoked_ends_with_the_other_run():
    gate = Yoked([True, True])
    with pytest.raises(UserError, match=r"has 2 steps.*decide step 2.*at most 2 steps"):
        gate.opens(2)
    with pytest.raises(UserError, match="0 steps"):
        Yoked([]).opens(0)


def test_yoked_does_not_follow_later_changes_of_the_list():
    stepped = [True]
    gate = Yoked(stepped)
    stepped[0] = False
    assert gate.opens(0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.93])
def test_random_skip_skips_at_its_rate(rate):
    steps = 20_000
    gate = RandomSkip(rate, seed=3)
    opened = np.array([gate.opens(step) for step in range(steps)])
    spread = math.sqrt(rate * (1 - rate) / steps)
    assert np.mean(~opened) == pytest.approx(rate, abs=4 * spread)
    # Neighbouring steps, and neighbouring seeds, know nothing of each other.
    centred = opened - opened.mean()
    assert abs(np.mean(centred[1:] * centred[:-1])) < 4 * rate * (1 - rate) / math.sqrt(steps)
    other = np.array([RandomSkip(rate, seed=4).opens(step) for step in range(5000)])
    agreement = np.mean(opened[:5000] == other)
    assert agreement == pytest.approx(rate**2 + (1 - rate) ** 2, abs=4 * 0.5 / math.sqrt(5000))


def test_random_skip_answers_alike_in_any_order_and_every_time():
    gate = RandomSkip(0.5, seed=1)
    forwards = [gate.opens(step) for step in range(200)]
    backwards = [RandomSkip(0.5, seed=1).opens(step) for step in reversed(range(200))]
    assert forwards == backwards[::-1]
    assert forwards == [gate.opens(step) for step in range(200)]
    assert forwards != [RandomSkip(0.5, seed=2).opens(step) for step in range(200)]


def test_random_skip_leaves_the_global_random_state_alone():
    import torch

    before = torch.get_rng_state()
    RandomSkip(0.5).opens(3)
    assert torch.equal(before, torch.get_rng_state())


def test_random_skip_at_its_ends():
    assert all(RandomSkip(0).opens(step) for step in range(300))
    assert not any(RandomSkip(1).opens(step) for step in range(300))


@pytest.mark.parametrize("rate", [-0.01, 1.01, math.nan])
def test_a_rate_outside_0_1_is_refused(rate):
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        RandomSkip(rate)
