"""What every weighting must do, whatever it computes: one table of rules, one list of properties.

A new rule is one row of the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from random_rows import cases, gradient_rows, gramian

from gafscope.aggregation import (
    GAF,
    CliqueGAF,
    Decision,
    GeometricMedian,
    HalvingGAF,
    InverseVariance,
    KMeansDirections,
    Krum,
    L2Threshold,
    LeaveOneOut,
    MahalanobisThreshold,
    Mean,
    MultiKrum,
    SoftGAF,
    TopM,
    Weighting,
    check_decision,
)
from gafscope.errors import UserError
from gafscope.gradients import Gramian


@dataclass(frozen=True)
class Rule:
    rule: Any
    least: int = 2  # the fewest micro-gradients it takes
    order_free: bool = True
    any_length: bool = False  # scaling single rows by positive numbers changes no weight
    one_left: bool = False  # steps on a single finite row
    cosine: bool = True  # distances are cosine distances, in [0, 2]
    all_alike: bool = True  # accepts identical rows, all of them


RULES = {
    "mean": Rule(Mean(), least=1, any_length=True, one_left=True),
    "gaf": Rule(GAF(0.9), order_free=False),
    "gaf-best": Rule(GAF(0.9, anchor="best")),
    "gaf-worst": Rule(GAF(0.9, anchor="worst")),
    "gaf-random": Rule(GAF(0.9, anchor="random"), order_free=False),
    "halving": Rule(HalvingGAF(0.9), order_free=False),
    "clique": Rule(CliqueGAF(0.9), any_length=True),
    "leave-one-out": Rule(LeaveOneOut(0.9)),
    "soft": Rule(SoftGAF(0.9, 0.1)),
    "inverse-variance": Rule(InverseVariance(0.3), least=3, one_left=True),
    "top-2": Rule(TopM(2), all_alike=False),
    "top-1": Rule(TopM(1), all_alike=False),
    "k-means largest": Rule(KMeansDirections(2), least=4, any_length=True),
    "k-means means": Rule(KMeansDirections(3, "means", 0.8), least=6, any_length=True),
    "l2": Rule(L2Threshold(1.2), cosine=False),
    "mahalanobis": Rule(MahalanobisThreshold(1.1), least=3, cosine=False),
    "mahalanobis 0.3": Rule(MahalanobisThreshold(1.1, 0.3), least=3, cosine=False),
    "geometric median": Rule(GeometricMedian(), one_left=True, cosine=False),
    "krum 0": Rule(Krum(0), least=3, cosine=False, all_alike=False),
    "krum 1": Rule(Krum(1), least=5, cosine=False, all_alike=False),
    "multi-krum": Rule(MultiKrum(1, 3), least=5, cosine=False, all_alike=False),
    "multi-krum 6": Rule(MultiKrum(1, 6), least=6, cosine=False, all_alike=False),
}
every_rule = pytest.mark.parametrize("name", RULES)
# A random anchor depends on the Gramian's very bytes.
every_steady_rule = pytest.mark.parametrize("name", [n for n in RULES if n != "gaf-random"])


def normal(k: int, size: int = 12, agreement: float = 0.5, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(k, size)) + agreement * random.normal(size=size)


@every_rule
def test_decisions_are_consistent_on_odd_and_ordinary_rows(name):
    case, steps, partly = RULES[name], [], 0
    for rows, _, kind in cases(108):
        if len(rows) < case.least:
            continue
        matrix = gramian(rows)
        decision: Decision = case.rule(matrix)
        check_decision(decision, matrix.matrix, case.rule)
        weights, distances = decision.weights, decision.distances
        assert weights.dtype == distances.dtype == torch.float64
        assert (weights >= 0).all(), kind
        assert torch.equal(weights > 0, decision.accepted), kind
        assert float(weights.sum()) == pytest.approx(float(decision.step), abs=1e-12), kind
        assert decision.step == bool(decision.accepted.any()), kind
        finite = torch.from_numpy(np.isfinite(rows).all(1))
        assert torch.equal(decision.finite, finite), kind
        assert not (distances.isfinite() & ~finite).any(), kind
        assert not distances.isinf().any()
        known = distances[~distances.isnan()]
        assert ((known >= 0) & (known <= (2.0 if case.cosine else math.inf))).all(), kind
        update = gradient_rows(rows).combine(weights)
        assert not any(bool(part.isnan().any()) for part in update.values()), kind
        steps.append(decision.step)
        partly += 0 < int(decision.accepted.sum()) < int(finite.sum())
    # A rule that never steps, or (where it may) never chooses, would pass in vain.
    assert np.mean(steps) > 0.3
    assert partly or name in ("mean", "soft", "inverse-variance", "geometric median")


@every_rule
def test_too_few_micro_gradients_are_refused(name):
    case = RULES[name]
    assert isinstance(case.rule, Weighting)
    case.rule(gramian(normal(case.least)))
    if case.least == 1:
        return
    found = case.least - 1
    kind = type(case.rule).__name__
    message = rf"{kind}.* needs at least {case.least} .*k = {found}.*microbatches={case.least}"
    with pytest.raises(UserError, match=message):
        case.rule(gramian(normal(found)))


@every_steady_rule
def test_a_positive_factor_on_all_rows_changes_nothing(name):
    case = RULES[name]
    for seed in range(4):
        rows = normal(max(case.least, 9), seed=seed)
        plain = case.rule(gramian(rows))
        for factor in (2.0**-40, 1e-3, 7.3, 2.0**30):
            scaled = case.rule(gramian(rows * factor))
            torch.testing.assert_close(scaled.weights, plain.weights, rtol=1e-7, atol=1e-9)
            torch.testing.assert_close(
                scaled.distances, plain.distances, rtol=1e-6, atol=1e-8, equal_nan=True
            )


@every_rule
def test_which_rules_look_at_directions_only(name):
    case = RULES[name]
    random = np.random.default_rng(0)
    same = []
    for seed in range(10):
        rows = normal(max(case.least, 8), seed=seed)
        scaled = rows * 10.0 ** random.uniform(-2, 2, size=(len(rows), 1))
        weights = [case.rule(gramian(r)).weights for r in (rows, scaled)]
        same.append(bool((weights[0] - weights[1]).abs().max() < 1e-9))
    assert all(same) == case.any_length


@every_rule
def test_rules_without_an_order_follow_a_permutation(name):
    case = RULES[name]
    random = np.random.default_rng(1)
    follows = []
    for seed in range(12):
        rows = normal(max(case.least, 10), agreement=0.7, seed=seed)
        if seed % 3 == 0:
            rows[2] = 0
        if seed % 3 == 1:
            rows[5] = np.nan
        matrix = gramian(rows).matrix
        order = torch.from_numpy(random.permutation(len(rows)))
        plain, moved = case.rule(Gramian(matrix)), case.rule(Gramian(matrix[order][:, order]))
        follows.append(bool((moved.weights - plain.weights[order]).abs().max() < 1e-8))
        if case.order_free and name not in ("mean", "gaf-best", "gaf-worst"):
            torch.testing.assert_close(
                moved.distances, plain.distances[order], rtol=1e-6, atol=1e-7, equal_nan=True
            )
    assert all(follows) == case.order_free


@every_rule
def test_identical_rows_are_all_accepted(name):
    case = RULES[name]
    rows = np.tile(normal(1)[0], (7, 1))
    decision = case.rule(gramian(rows))
    assert decision.step
    if case.all_alike:
        assert decision.accepted.all()
        if name != "halving":
            np.testing.assert_allclose(decision.weights, np.full(7, 1 / 7), rtol=1e-6)


@every_steady_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_count_for_nothing(name, bad):
    case = RULES[name]
    rows = normal(max(case.least, 8) + 1, agreement=1.0)
    kept = np.delete(rows, 4, 0)
    rows[4, 3] = bad
    with_bad, without = case.rule(gramian(rows)), case.rule(gramian(kept))
    if name.startswith(("krum", "multi-krum")):
        # One of the f arbitrary rows: what is left is judged with f - 1 of them.
        f = case.rule.byzantine
        less = replace(case.rule, byzantine=max(f - 1, 0))
        without = less(gramian(kept)) if f else None
    keep = [i for i in range(len(rows)) if i != 4]
    assert not with_bad.accepted[4]
    assert math.isnan(with_bad.distances[4])
    if without is None:
        assert not with_bad.step
    else:
        np.testing.assert_allclose(with_bad.weights[keep], without.weights, rtol=1e-9)


@every_rule
def test_one_finite_row_left(name):
    case = RULES[name]
    rows = np.full((max(case.least, 3), 12), math.nan)
    rows[1] = normal(1)
    decision = case.rule(gramian(rows))
    assert decision.step == case.one_left
    expected = [0.0] * len(rows)
    expected[1] = 1.0 if case.one_left else 0.0
    assert decision.weights.tolist() == expected
    rows[1] = math.inf
    assert not case.rule(gramian(rows)).step


@every_rule
def test_zero_rows_are_never_nan(name):
    case = RULES[name]
    rows = normal(max(case.least, 7), agreement=2.0)
    rows[[1, 4]] = 0
    decision = case.rule(gramian(rows))
    assert not decision.distances[[1, 4]].isnan().any()
    if case.cosine:
        assert decision.distances[[1, 4]].tolist() == pytest.approx([1.0, 1.0], abs=0)
    only_zeros = case.rule(gramian(np.zeros_like(rows)))
    assert only_zeros.distances.isnan().sum() == 0


@every_rule
def test_the_gramian_is_left_as_it_was(name):
    case = RULES[name]
    rows = normal(max(case.least, 6))
    rows[3, 0] = math.nan
    matrix = gramian(rows).matrix
    before = matrix.clone()
    first, again = case.rule(Gramian(matrix)), case.rule(Gramian(matrix))
    assert torch.equal(matrix.nan_to_num(7.0), before.nan_to_num(7.0))
    assert torch.equal(first.weights, again.weights)
