"""What every rule that needs rows must do: one table of rules, one list of properties.

A new rule is one row of the table.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from random_rows import ODD, cases, flat, gradient_rows

from gafscope.aggregation import (
    GAF,
    Aggregate,
    ByBucket,
    ByLayer,
    CliqueGAF,
    CoordinateMedian,
    DirectionGate,
    EMAGate,
    Mean,
    PreviousGate,
    RowRule,
    SANDMask,
    SignAgreement,
    Stateful,
    TrimmedMean,
    Weighting,
    aggregate,
    per_sample_step,
)
from gafscope.errors import UserError


@dataclass(frozen=True)
class Case:
    rule: Any
    least: int = 2  # the fewest micro-gradients it takes
    order_free: bool = True
    scales: bool = True  # twice the rows give twice the update


RULES = {
    "sign agreement": Case(SignAgreement()),
    "sign agreement 0.5": Case(SignAgreement(0.5)),
    "sand mask": Case(SANDMask(0.3), scales=False),  # compares the variance with 1
    "trimmed mean": Case(TrimmedMean(1), least=3),
    "coordinate median": Case(CoordinateMedian(), least=1),
    "ema gate": Case(EMAGate(), least=1),
    "ema gate on gaf": Case(EMAGate(GAF(0.9)), order_free=False),
    "previous gate": Case(PreviousGate(0.9), least=1),
    "direction gate": Case(DirectionGate(0.9), least=1),
    "by layer": Case(ByLayer(GAF(0.9)), order_free=False),
    "by layer, mean": Case(ByLayer(Mean()), least=1),
    "by layer, clique": Case(ByLayer(CliqueGAF(0.9))),
    "by bucket": Case(ByBucket(GAF(0.9), bytes=16), order_free=False),
}
every_rule = pytest.mark.parametrize("name", RULES)


def combine(rule: RowRule, rows: np.ndarray) -> Aggregate:
    named = gradient_rows(rows)
    return aggregate(rule, named, named.gramian())


@every_rule
def test_results_are_consistent_on_odd_and_ordinary_rows(name):
    case, kinds = RULES[name], set()
    for rows, _, kind in cases(36):
        if len(rows) < case.least or rows.shape[1] < 2:
            continue
        kinds.add(kind)
        named = gradient_rows(rows)
        result = combine(copy.deepcopy(case.rule), rows)
        decision, finite = result.decision, np.isfinite(rows).all(1)
        assert decision.finite.tolist() == finite.tolist()
        assert not (decision.accepted.numpy() & ~finite).any()
        assert torch.equal(decision.weights > 0, decision.accepted)
        assert float(decision.weights.sum()) == pytest.approx(float(decision.step))
        assert decision.step == bool(decision.accepted.any()) == bool(result.update)
        for parameter, gradient in result.update.items():
            assert gradient.isfinite().all()
            assert gradient.shape == named.named[parameter].shape[1:]
            assert gradient.dtype == named.named[parameter].dtype
        assert all(math.isfinite(v) or not decision.step for v in result.scalars.values())
    assert kinds == set(ODD)


@every_rule
def test_the_rows_are_left_as_they_are(name):
    rows = np.random.default_rng(0).normal(size=(6, 9)) + 0.5
    named = gradient_rows(rows.copy())
    aggregate(copy.deepcopy(RULES[name].rule), named, named.gramian())
    np.testing.assert_array_equal(named.flat().numpy(), rows)


@pytest.mark.parametrize("name", [name for name, case in RULES.items() if case.order_free])
def test_the_order_of_the_rows_does_not_matter(name):
    rows = np.random.default_rng(1).normal(size=(7, 12)) + 0.7
    order = [3, 1, 6, 0, 2, 5, 4]
    one, other = copy.deepcopy(RULES[name].rule), copy.deepcopy(RULES[name].rule)
    for shift in (0.0, 0.3):
        first, second = combine(one, rows + shift), combine(other, rows[order] + shift)
        assert first.decision.accepted[order].tolist() == second.decision.accepted.tolist()
        np.testing.assert_allclose(flat(first.update), flat(second.update), rtol=1e-10)


@pytest.mark.parametrize("name", [name for name, case in RULES.items() if case.scales])
def test_scaling_all_rows_scales_the_update(name):
    rows = np.random.default_rng(2).normal(size=(5, 12)) + 0.8
    one, other = copy.deepcopy(RULES[name].rule), copy.deepcopy(RULES[name].rule)
    for shift in (0.0, 0.3):
        first, second = combine(one, rows + shift), combine(other, 8 * (rows + shift))
        assert first.update.keys() == second.update.keys()
        for part, larger in zip(first.update.values(), second.update.values(), strict=True):
            torch.testing.assert_close(8 * part, larger, rtol=1e-12, atol=0)


@every_rule
def test_identical_rows_are_averaged(name):
    row = np.array([1.0, -2.0, 0.5, 4.0])
    case = RULES[name]
    result = combine(copy.deepcopy(case.rule), np.tile(row, (5, 1)))
    assert result.decision.accepted.all()
    np.testing.assert_allclose(flat(result.update), row, rtol=1e-12)


@every_rule
def test_what_it_is(name):
    rule = RULES[name].rule
    assert isinstance(rule, RowRule)
    assert not isinstance(rule, Weighting)
    assert isinstance(rule, Stateful) == ("gate" in name)
    model = torch.nn.Linear(2, 1)
    with pytest.raises(UserError, match=f"{type(rule).__name__} needs the gradients themselves"):
        per_sample_step(model, lambda m, b: m(b).squeeze(1), torch.ones(4, 2), rule)
