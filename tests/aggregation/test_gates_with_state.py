"""The gates that remember: EMAGate, PreviousGate, DirectionGate."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from random_rows import cases, flat, gradient_rows

from gafscope.aggregation import (
    GAF,
    Aggregate,
    ByLayer,
    Calibrating,
    DirectionGate,
    EMAGate,
    Mean,
    PreviousGate,
    SignAgreement,
    Stateful,
)
from gafscope.errors import UserError
from gafscope.gradients import GradientRows

GATES = [EMAGate, PreviousGate, DirectionGate]


def give(gate, **named: list) -> Aggregate:
    rows = GradientRows({name: torch.tensor(v).double() for name, v in named.items()})
    return gate.aggregate(rows, rows.gramian())


def distance(g: np.ndarray, s: np.ndarray) -> float:
    if not g.any() or not s.any():
        return 1.0
    return 1 - float(g @ s) / math.sqrt(float(g @ g) * float(s @ s))


def stream(steps: int = 60, k: int = 4, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    mean, batches = np.zeros(9), []
    for _ in range(steps):
        mean = 0.9 * mean + 0.5 * random.normal(size=9)
        batches.append(mean + random.normal(size=(k, 9)))
    batches[5][1] = np.nan
    batches[6][:] = np.nan
    batches[7][2] = 0
    return batches


@pytest.mark.parametrize("decay", [None, 0.6])
def test_row_gates_equal_the_explicit_rule(decay):
    gate = PreviousGate(0.5) if decay is None else DirectionGate(0.5, decay)
    reference, counts = None, []
    for rows in stream():
        good = [g for g in rows if np.isfinite(g).all()]
        if reference is not None:
            good = [g for g in good if distance(g, reference) <= 0.5]
        named = gradient_rows(rows)
        result = gate.aggregate(named, named.gramian())
        counts.append(len(good))
        assert int(result.decision.accepted.sum()) == len(good)
        assert result.decision.step == bool(good)
        assert result.decision.finite.tolist() == np.isfinite(rows).all(1).tolist()
        if not good:
            assert result.update == {}
            continue
        update = np.mean(good, 0)
        np.testing.assert_allclose(flat(result.update), update, rtol=1e-12, atol=1e-13)
        unit = update / np.linalg.norm(update)
        if decay is None:
            reference = update
        else:
            reference = unit if reference is None else decay * reference + (1 - decay) * unit
    assert 0 in counts
    assert 0 < sum(counts) / len(counts) < 3.5


def test_ema_gate_equals_the_explicit_rule():
    gate, average, shares = EMAGate(GAF(0.9), decay=0.7, tau=0.6), {}, []
    for rows in stream(100):
        named = gradient_rows(rows)
        decision = GAF(0.9)(named.gramian())
        result = gate.aggregate(named, named.gramian())
        if not decision.step:
            assert not result.decision.step
            assert math.isnan(result.scalars["suppressed"])
            continue
        gradient = decision.weights.numpy() @ np.nan_to_num(rows)
        parts = {"a": gradient[:1], "b": gradient[1:]}
        passed = {
            name
            for name, g in parts.items()
            if name not in average or distance(g, average[name]) <= 0.6
        }
        for name, g in parts.items():
            average[name] = 0.7 * average[name] + 0.3 * g if name in average else g
        assert set(result.update) == passed
        for name in passed:
            np.testing.assert_allclose(result.update[name].flatten(), parts[name], rtol=1e-12)
        suppressed = sum(len(parts[name]) for name in parts if name not in passed) / 9
        assert result.scalars["suppressed"] == pytest.approx(suppressed)
        assert result.decision.step == bool(passed)
        shares.append(suppressed)
    assert {0.0, 1 / 9} < set(shares)


def test_when_everything_is_suppressed_the_step_is_skipped():
    gate = EMAGate()
    give(gate, a=[[1.0]] * 2, b=[[1.0]] * 2)
    result = give(gate, a=[[-1.0]] * 2, b=[[-1.0]] * 2)
    assert result.update == {}
    assert result.scalars["suppressed"] == 1.0
    assert not result.decision.step
    assert not result.decision.accepted.any()
    assert not result.decision.weights.any()


def test_previous_gate_by_hand():
    gate = PreviousGate(tau=0.9)
    first = give(gate, w=[[1.0, 0.0], [0.0, 1.0]])
    assert first.decision.distances.isnan().all()
    assert first.update["w"].tolist() == [0.5, 0.5]
    second = give(gate, w=[[1.0, 1.0], [1.0, -1.0]])
    assert second.decision.distances.tolist() == pytest.approx([0.0, 1.0])
    assert second.decision.accepted.tolist() == [True, False]
    assert second.update["w"].tolist() == [1.0, 1.0]
    # Nothing is accepted, so the update before stays the previous one.
    assert not give(gate, w=[[-1.0, 0.0], [0.0, -1.0]]).decision.step
    third = give(gate, w=[[1.0, 1.0], [-1.0, 0.0]])
    assert third.decision.distances.tolist() == pytest.approx([0.0, 1 + math.sqrt(0.5)])


def test_direction_counts_every_update_alike():
    gate = DirectionGate(tau=2.0, decay=0.5)
    give(gate, w=[[100.0, 0.0]])
    give(gate, w=[[0.0, 0.001]])
    assert gate.state_dict()["direction"]["w"].tolist() == pytest.approx([0.5, 0.5])


def test_a_suppressed_parameter_returns_when_its_gradient_has_turned_for_good():
    gate = EMAGate(decay=0.5)
    give(gate, a=[[1.0]] * 2, b=[[1.0]] * 2)
    kept = [set(give(gate, a=[[1.0]] * 2, b=[[-1.0]] * 2).update) for _ in range(3)]
    # The average goes 1, 0, -1/2: zero has no direction, so the second -1 passes.
    assert kept == [{"a"}, {"a", "b"}, {"a", "b"}]


@pytest.mark.parametrize("gate", [PreviousGate(0.5), DirectionGate(0.5)])
def test_a_zero_update_is_not_remembered(gate):
    gate = copy.deepcopy(gate)
    assert give(gate, w=[[0.0], [0.0]]).decision.step
    assert give(gate, w=[[1.0], [-3.0]]).update["w"].tolist() == [-1.0]


@pytest.mark.parametrize("kind", GATES)
def test_a_skip_of_the_base_rule_changes_no_state(kind):
    gate = kind(rule=GAF(0.5))
    give(gate, w=[[1.0, 0.0], [1.0, 0.1]])
    before = copy.deepcopy(gate.state_dict())
    assert not give(gate, w=[[1.0, 0.0], [-1.0, 0.1]]).decision.step
    assert repr(gate.state_dict()) == repr(before)


@pytest.mark.parametrize("kind", GATES)
def test_the_state_survives_a_file_bit_for_bit(kind):
    batches = [gradient_rows(rows) for rows in stream(40, seed=3)]
    whole = kind()
    expected = [whole.aggregate(rows, rows.gramian()) for rows in batches][20:]
    part = kind()
    for rows in batches[:20]:
        part.aggregate(rows, rows.gramian())
    file = io.BytesIO()
    torch.save(part.state_dict(), file)
    file.seek(0)
    other = kind()
    other.load_state_dict(torch.load(file, weights_only=True))
    for rows, wanted in zip(batches[20:], expected, strict=True):
        found = other.aggregate(rows, rows.gramian())
        assert found.update.keys() == wanted.update.keys()
        assert all(torch.equal(found.update[name], wanted.update[name]) for name in found.update)


@pytest.mark.parametrize("kind", GATES)
def test_what_is_done_to_an_update_does_not_reach_the_state(kind):
    gate = kind()
    result = give(gate, w=[[1.0, 2.0], [1.0, 2.0]])
    before = repr(gate.state_dict())
    result.update["w"].zero_()
    assert repr(gate.state_dict()) == before


@pytest.mark.parametrize("kind", GATES)
def test_half_precision(kind):
    gate = kind()
    rows = GradientRows({"w": torch.ones(2, 3, dtype=torch.bfloat16)})
    for _ in range(3):
        update = gate.aggregate(rows, rows.gramian()).update
    assert update["w"].dtype == torch.bfloat16
    assert update["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", GATES)
def test_gates_stand_on_any_rule_and_on_each_other(kind):
    for base in (Mean(), GAF(0.95), SignAgreement(0.5), ByLayer(GAF(1.0)), PreviousGate(1.2)):
        gate = kind(rule=copy.deepcopy(base))
        assert isinstance(gate, Stateful)
        for rows, _, _ in list(cases(60))[::9]:
            named = gradient_rows(np.resize(rows, (4, 9)))
            result = gate.aggregate(named, named.gramian())
            assert not (result.decision.accepted & ~result.decision.finite).any()
            assert all(part.isfinite().all() for part in result.update.values())
        again = kind(rule=copy.deepcopy(base))
        again.load_state_dict(gate.state_dict())
        assert repr(again.state_dict()) == repr(gate.state_dict())


@pytest.mark.parametrize("kind", GATES)
def test_states_of_others_are_refused(kind):
    gate = kind()
    give(gate, w=[[1.0, 2.0], [1.0, 2.0]])
    with pytest.raises(UserError, match=f"{kind.__name__} remembers belongs to another model"):
        give(gate, w=[[1.0], [1.0]])
    with pytest.raises(UserError, match="there is no such parameter"):
        give(gate, v=[[1.0, 2.0], [1.0, 2.0]])
    with pytest.raises(UserError, match=f"not the state of {kind.__name__}"):
        kind().load_state_dict({"other": {}, "rule": {}})


class Asking(Calibrating):
    calibration_rows = 8

    def __call__(self, gramian, /):
        return Mean()(gramian)


@pytest.mark.parametrize("kind", GATES)
def test_bad_arguments(kind):
    with pytest.raises(UserError, match="must lie in"):
        kind(tau=2.1)
    with pytest.raises(UserError, match=f"{kind.__name__} cannot hold Asking"):
        kind(rule=Asking())
    if kind is not PreviousGate:
        with pytest.raises(UserError, match=r"decay of .* must lie in \[0, 1\)"):
            kind(decay=1.0)
