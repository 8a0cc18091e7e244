"""What must hold for every rule, whatever the rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gafscope.aggregation import GAF, Decision, HalvingGAF, Mean, Sequential, Weighting
from gafscope.gradients import GradientRows, Gramian

TAUS = st.sampled_from([0.0, 0.5, 0.97, 1.0, 1.5, 2.0])
RULES = st.one_of(st.builds(GAF, TAUS), st.builds(HalvingGAF, TAUS), st.just(Mean()))
ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True)
FINITE = st.floats(-10, 10, width=32)


def matrices(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[float]]]:
    shapes = st.tuples(st.integers(2, 7), st.integers(1, 4))
    return shapes.flatmap(
        lambda shape: st.lists(
            st.lists(numbers, min_size=shape[1], max_size=shape[1]),
            min_size=shape[0],
            max_size=shape[0],
        )
    )


@settings(deadline=None, max_examples=300)
@given(RULES, matrices(st.one_of(ANY_FLOAT, FINITE, st.sampled_from([0.0, 1.0, -1.0]))))
def test_a_decision_is_consistent(rule, values):
    rows = torch.tensor(values)
    decision = rule(GradientRows({"w": rows}).gramian())
    weights = decision.weights
    assert weights.dtype == decision.distances.dtype == torch.float64
    assert weights.shape == decision.accepted.shape == decision.distances.shape == (len(rows),)
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1.0 if decision.step else 0.0, abs=1e-12)
    assert torch.equal(weights > 0, decision.accepted)
    assert decision.step == bool(decision.accepted.any())
    assert torch.equal(decision.finite, rows.isfinite().all(1))
    assert not (decision.accepted & ~decision.finite).any()
    distances = decision.distances[~decision.distances.isnan()]
    assert ((distances >= 0) & (distances <= 2)).all()
    assert not (decision.distances.isfinite() & ~decision.finite).any()
    if not isinstance(rule, Mean):
        assert not (decision.distances[decision.accepted] > rule.tau).any()
        assert int(decision.accepted.sum()) != 1
    update = GradientRows({"w": rows}).combine(weights)["w"]
    assert not update.isnan().any()


@settings(deadline=None)
@given(RULES, matrices(FINITE), st.integers(-60, 60))
def test_scaling_all_rows_by_one_positive_number_changes_no_decision(rule, values, exponent):
    rows = torch.tensor(values, dtype=torch.float64)
    # A power of two, so that not even a tie can be rounded the other way.
    decision, scaled = (
        rule(GradientRows({"w": r}).gramian()) for r in (rows, rows * 2.0**exponent)
    )
    assert torch.equal(decision.weights, scaled.weights)
    assert torch.equal(decision.distances.nan_to_num(-1), scaled.distances.nan_to_num(-1))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_scaling_by_any_positive_number_changes_no_decision(seed, factor):
    rows = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for rule in (GAF(0.97), HalvingGAF(0.97), Mean()):
        plain, scaled = (rule(GradientRows({"w": r}).gramian()) for r in (rows, rows * factor))
        assert torch.equal(plain.weights, scaled.weights)


@settings(deadline=None)
@given(matrices(FINITE))
def test_a_larger_threshold_accepts_the_second_row_no_less(values):
    gramian = GradientRows({"w": torch.tensor(values[:2])}).gramian()
    steps = [GAF(tau)(gramian).step for tau in (0.0, 0.3, 0.97, 1.0, 1.4, 2.0)]
    assert steps == sorted(steps)
    assert steps[-1]


def test_a_gramian_in_float32_or_with_stray_products_decides_as_well():
    matrix = torch.tensor([[1.0, 0.9, math.inf], [0.9, 1.0, 5.0], [math.inf, 5.0, math.inf]])
    assert GAF()(Gramian(matrix)).weights.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("rule", [GAF(), HalvingGAF(), Mean()])
def test_every_rule_is_a_weighting_that_can_stream(rule):
    assert isinstance(rule, Weighting)
    assert isinstance(rule, Sequential)


def test_a_decision_shows_what_it_did():
    matrix = torch.tensor([[1.0, 0.9, -0.9], [0.9, 1.0, -0.9], [-0.9, -0.9, 1.0]])
    decision = GAF(0.5)(Gramian(matrix))
    assert repr(decision) == "Decision(step=True, 2 of 3 accepted, weights=[0.5, 0.5, 0])"
    html = decision._repr_html_()
    assert html.count("<tr>") == 4
    for cell in ("step: yes", "0.5000", "0.1000", "nan", "no"):
        assert cell in html
    skipped = GAF(0.05)(Gramian(matrix))
    assert isinstance(skipped, Decision)
    assert "step: no" in skipped._repr_html_()
