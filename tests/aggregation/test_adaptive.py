from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gafscope.aggregation import (
    GAF,
    AdaptiveGAF,
    Calibrating,
    Observing,
    Recording,
    Sequential,
    Stateful,
    Visitor,
)
from gafscope.errors import UserError
from gafscope.gradients import Gramian


def pair(distance: float) -> Gramian:
    cosine = 1 - distance
    return Gramian(torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64))


def accepted_share(rule: AdaptiveGAF, distances: np.ndarray) -> float:
    return float(np.mean([rule(pair(float(distance))).step for distance in distances]))


def test_it_is_what_the_trainer_may_ask_of_a_rule():
    rule = AdaptiveGAF()
    for kind in (Sequential, Stateful, Observing, Recording):
        assert isinstance(rule, kind)
    assert not isinstance(rule, Calibrating)


@pytest.mark.parametrize("target", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(("centre", "spread"), [(0.998, 0.01), (0.5, 0.2), (1.1, 0.001)])
def test_the_accepted_share_is_the_target_wherever_the_distances_are(target, centre, spread):
    distances = np.random.default_rng(0).normal(centre, spread, size=1000)
    rule = AdaptiveGAF(target_acceptance=target)
    assert accepted_share(rule, distances) == pytest.approx(target, abs=0.04)


def test_it_follows_distances_that_drift():
    random = np.random.default_rng(1)
    distances = np.linspace(0.3, 1.0, 1500) + random.normal(0, 0.1, size=1500)
    assert accepted_share(AdaptiveGAF(0.5), distances) == pytest.approx(0.5, abs=0.12)


def test_it_recovers_from_a_jump_within_its_window():
    random = np.random.default_rng(2)
    rule = AdaptiveGAF(0.2, window=50)
    accepted_share(rule, random.normal(0.4, 0.02, size=200))
    later = random.normal(0.999, 0.001, size=400)
    assert accepted_share(rule, later[:5]) == 0
    accepted_share(rule, later[5:50])
    assert accepted_share(rule, later[50:]) == pytest.approx(0.2, abs=0.06)


def test_the_first_decision_accepts_everything():
    rule = AdaptiveGAF(0.01)
    assert rule(pair(1.9)).step


def test_the_threshold_is_the_quantile_of_all_visits_of_the_last_decisions():
    random = np.random.default_rng(3)
    rule, seen = AdaptiveGAF(0.3, window=10), []
    for _ in range(25):
        rows = random.normal(size=(5, 8)) + 0.5
        expected = np.quantile(np.concatenate(seen[-10:]), 0.3) if seen else 2.0
        assert rule.fold.tau == pytest.approx(expected, abs=1e-12)
        decision = rule(Gramian(torch.from_numpy(rows @ rows.T)))
        reference = GAF(rule.scalars()["tau"])(Gramian(torch.from_numpy(rows @ rows.T)))
        assert torch.equal(decision.weights, reference.weights)
        seen.append(decision.distances[1:].numpy())


def test_streaming_and_observing_is_the_same_as_calling():
    called, streamed = AdaptiveGAF(0.4), AdaptiveGAF(0.4)
    for distance in np.random.default_rng(4).uniform(0.2, 1.2, size=60):
        expected = called(pair(distance))
        visitor = Visitor(streamed.fold, 2)
        visitor.visit(1.0, math.nan)
        visitor.visit(1.0, 1 - distance)
        decision = visitor.decision()
        streamed.observe(decision)
        assert decision.step == expected.step
        assert streamed.fold == called.fold
        assert streamed.scalars() == called.scalars()


def test_the_record_shows_the_threshold_of_the_last_decision():
    rule = AdaptiveGAF()
    rule(pair(0.7))
    assert rule.scalars() == {"tau": 2.0}
    rule(pair(0.9))
    assert rule.scalars() == {"tau": pytest.approx(0.7)}


def test_visits_without_a_distance_teach_nothing():
    rule = AdaptiveGAF()
    rule(pair(0.7))
    before = rule.fold
    rule(Gramian(torch.full((2, 2), math.nan)))
    assert rule.fold == before


def test_its_state_goes_through_a_checkpoint(tmp_path):
    distances = np.random.default_rng(5).uniform(0.5, 1.1, size=60)
    rule, other = AdaptiveGAF(0.3, window=20), AdaptiveGAF(0.3, window=20)
    accepted_share(rule, distances[:30])
    torch.save(rule.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.fold == rule.fold
    for distance in distances[30:]:
        assert rule(pair(distance)).step == other(pair(distance)).step
        assert rule.fold == other.fold


def test_an_empty_state_is_a_new_rule():
    rule = AdaptiveGAF()
    rule(pair(0.2))
    rule.load_state_dict(AdaptiveGAF().state_dict())
    assert rule.fold.tau == 2


@pytest.mark.parametrize("target", [0, 1, -0.1, math.nan])
def test_a_target_that_is_no_share_is_refused(target):
    with pytest.raises(UserError, match=r"target_acceptance.*\(0, 1\)"):
        AdaptiveGAF(target)


def test_too_short_a_window_is_refused():
    with pytest.raises(UserError, match=r"window.*at least 10.*9"):
        AdaptiveGAF(window=9)


def test_one_micro_gradient_is_refused():
    with pytest.raises(UserError, match=r"AdaptiveGAF needs at least 2 micro-gradients"):
        AdaptiveGAF()(Gramian(torch.ones(1, 1)))
