from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gafscope.aggregation import (
    GAF,
    CalibratedGAF,
    Calibrating,
    Observing,
    Recording,
    Sequential,
    Stateful,
    Weighting,
)
from gafscope.errors import UserError
from gafscope.geometry import effective_dimension, null_quantile, null_spectrum
from gafscope.gradients import Gramian


def gramian(rows: np.ndarray) -> Gramian:
    return Gramian(torch.from_numpy(rows @ rows.T))


def noise(k: int = 32, size: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(k, size))


def calibrated(rows: np.ndarray, **options: float) -> CalibratedGAF:
    rule = CalibratedGAF(**options)  # type: ignore[arg-type]
    rule.calibrate(gramian(rows))
    return rule


def test_it_is_what_the_trainer_may_ask_of_a_rule():
    rule = calibrated(noise())
    assert isinstance(rule, Weighting)
    assert isinstance(rule, Sequential)
    assert isinstance(rule, Stateful)
    assert isinstance(rule, Calibrating)
    assert isinstance(rule, Recording)
    assert not isinstance(rule, Observing)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
def test_it_accepts_the_chosen_share_of_independent_pairs(rate):
    left, right = np.random.default_rng(1).normal(size=(2, 4000, 400))
    cosines = (left * right).sum(1)
    cosines /= np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    taus = [calibrated(noise(seed=seed), false_accept=rate).fold.tau for seed in range(20)]
    accepted = [np.mean(1 - cosines <= tau) for tau in taus]
    assert 0.5 * rate < np.mean(accepted) < 1.5 * rate


def test_larger_microbatches_of_the_same_samples_have_the_same_threshold():
    random = np.random.default_rng(2)
    taus = {1: [], 10: [], 100: []}
    for _ in range(10):
        samples = random.exponential(size=(3200, 60)) * np.arange(1, 61) ** -0.5
        for u, found in taus.items():
            found.append(calibrated(samples.reshape(-1, u, 60).mean(1)[:32]).fold.tau)
    means = [np.mean(found) for found in taus.values()]
    assert max(means) - min(means) < 0.03


def test_it_decides_as_gaf_does_at_its_threshold():
    rule = calibrated(noise())
    rows = noise(6, 30, seed=3) + 0.4
    ours, theirs = rule(gramian(rows)), GAF(rule.fold.tau)(gramian(rows))
    assert torch.equal(ours.weights, theirs.weights)
    assert torch.equal(ours.distances.nan_to_num(-1), theirs.distances.nan_to_num(-1))


def test_it_is_due_at_once_and_then_every_so_often():
    rule = CalibratedGAF(every=50)
    assert [step for step in (0, 1, 7, 50) if rule.due(step)] == [0, 1, 7, 50]
    rule.calibrate(gramian(noise()))
    assert [step for step in range(201) if rule.due(step)] == [0, 50, 100, 150, 200]


def test_a_new_threshold_moves_the_old_one_half_way():
    wide, narrow = noise(), noise(size=25)
    rule = calibrated(wide)
    before = rule.fold.tau
    target = null_quantile(null_spectrum(gramian(narrow).matrix), 0.05)
    rule.calibrate(gramian(narrow))
    assert rule.fold.tau == pytest.approx((before + target) / 2)


def test_a_first_threshold_that_was_given_only_serves_until_the_first_calibration():
    rule = CalibratedGAF(tau=0.3)
    assert rule.fold.tau == 0.3
    assert rule.due(17)
    rule.calibrate(gramian(noise()))
    assert rule.fold.tau == calibrated(noise()).fold.tau


@pytest.mark.parametrize("call", [lambda rule: rule.fold, lambda rule: rule(gramian(noise(2)))])
def test_before_any_calibration_it_has_no_threshold(call):
    with pytest.raises(UserError, match=r"before its state exists.*calibrate.*tau"):
        call(CalibratedGAF())


def test_the_record_shows_threshold_and_dimension():
    rule = CalibratedGAF()
    assert all(math.isnan(value) for value in rule.scalars().values())
    rule.calibrate(gramian(noise()))
    assert rule.scalars() == {
        "tau": rule.fold.tau,
        "effective_dimension": effective_dimension(gramian(noise()).matrix),
    }


def test_its_state_goes_through_a_checkpoint(tmp_path):
    rule = calibrated(noise())
    torch.save(rule.state_dict(), tmp_path / "state.pt")
    other = CalibratedGAF()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.fold == rule.fold
    assert other.scalars() == rule.scalars()
    assert not other.due(3)
    for each in (rule, other):
        each.calibrate(gramian(noise(size=25)))
    assert other.fold == rule.fold


@pytest.mark.parametrize("value", [math.nan, 1.0])
def test_a_gramian_that_tells_nothing_leaves_the_threshold(value):
    rule = calibrated(noise())
    before = rule.fold
    rule.calibrate(gramian(np.full((32, 5), value)))
    assert rule.fold == before
    fresh = CalibratedGAF()
    fresh.calibrate(gramian(np.full((32, 5), value)))
    assert fresh.due(1)


def test_rows_that_are_not_finite_do_not_count():
    matrix = gramian(noise(12)).matrix
    keep = torch.arange(12) != 3
    spoilt, rest = CalibratedGAF(), CalibratedGAF()
    rest.calibrate(Gramian(matrix[keep][:, keep]))
    matrix[3] = matrix[:, 3] = math.nan
    spoilt.calibrate(Gramian(matrix))
    assert spoilt.fold == rest.fold


def test_too_few_microbatches_are_refused():
    with pytest.raises(UserError, match=r"at least 8 microbatches.*cut into 7"):
        CalibratedGAF().calibrate(gramian(noise(7)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"false_accept": 0.0}, r"false_accept.*\(0, 0\.5\]"),
        ({"false_accept": 5}, r"false_accept.*5"),
        ({"every": 0}, "every.*at least 1.*0"),
        ({"calibration_rows": 7}, "calibration_rows.*at least 8.*7"),
        ({"tau": 3.0}, r"tau.*\[0, 2\]"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        CalibratedGAF(**options)
