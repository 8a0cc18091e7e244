from __future__ import annotations

import explicit_rules
import numpy as np
import pytest
import torch
from random_rows import cases, gramian

from gafscope.aggregation import GAF, Decision, Sequential
from gafscope.gradients import Gramian


def from_start(rows: np.ndarray, start: int, tau: float) -> explicit_rules.Outcome:
    """Algorithm 1 from one row on, nearest first, with its indices put back."""
    key = [
        -1.0
        if i == start
        else explicit_rules.distance(g, rows[start])
        if np.isfinite(g).all()
        else np.inf
        for i, g in enumerate(rows)
    ]
    order = np.argsort(key, kind="stable")
    outcome = explicit_rules.gaf(rows[order], tau)
    outcome.accepted = sorted(int(order[i]) for i in outcome.accepted)
    outcome.distances = list(np.array(outcome.distances)[np.argsort(order)])
    return outcome


def starts(rows: np.ndarray) -> list[int]:
    return [i for i, g in enumerate(rows) if np.isfinite(g).all() and g.any()]


def accepted(decision: Decision) -> list[int]:
    return decision.accepted.nonzero().flatten().tolist()


@pytest.mark.parametrize("anchor", ["best", "worst"])
def test_best_and_worst_are_those_of_all_starts(anchor):
    sizes = []
    for rows, tau, kind in cases(150):
        decision = GAF(tau, anchor=anchor)(gramian(rows))
        if not starts(rows):
            assert accepted(decision) == accepted(GAF(tau)(gramian(rows))), kind
            continue
        outcomes = [from_start(rows, start, tau) for start in starts(rows)]
        counts = [len(outcome.accepted) for outcome in outcomes]
        wanted = max(counts) if anchor == "best" else min(counts)
        assert int(decision.accepted.sum()) == wanted, kind
        spread: dict[float, list[int]] = {}
        for outcome in outcomes:
            if outcome.step and len(outcome.accepted) == wanted:
                visits = np.array(outcome.distances)[outcome.accepted]
                # The first start of those that are alike stays.
                spread.setdefault(round(float(np.nanmean(visits)), 9), outcome.accepted)
        if spread:
            extreme = min(spread) if anchor == "best" else max(spread)
            assert accepted(decision) == spread[extreme], kind
        sizes.append(wanted)
    assert 0 in sizes
    assert max(sizes) > 5


def test_the_best_start_outvotes_a_bad_first_row():
    rows = np.array([[-1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [1.0, 0.3]])
    assert not GAF(0.9)(gramian(rows)).step
    best = GAF(0.9, anchor="best")(gramian(rows))
    assert accepted(best) == [1, 2, 3]
    # From the first row nothing agrees, so the smallest agreement is none.
    worst = GAF(0.9, anchor="worst")(gramian(rows))
    assert not worst.step
    assert worst.weights.tolist() == [0.0] * 4


def test_among_equally_many_the_nearest_rows_win_and_the_farthest_lose():
    rows = np.array([[1.0, 0, 0, 0], [1, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0.1]])
    assert accepted(GAF(0.5, anchor="best")(gramian(rows))) == [2, 3]
    assert accepted(GAF(0.5, anchor="worst")(gramian(rows))) == [0, 1]


def test_rows_are_visited_from_the_nearest_to_the_farthest():
    rows = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    decision = GAF(1.0, anchor="best")(gramian(rows))
    # All starts accept everything; they differ in the distances at their visits.
    expected = min(
        (from_start(rows, start, 1.0) for start in range(3)),
        key=lambda outcome: np.nanmean(outcome.distances),
    )
    np.testing.assert_allclose(decision.distances.numpy(), expected.distances, atol=1e-12)
    assert int(decision.distances.isnan().sum()) == 1


def test_a_random_anchor_is_drawn_from_the_gramian_and_the_seed():
    random = np.random.default_rng(0)
    drawn, redrawn = [], 0
    for _ in range(60):
        rows = random.normal(size=(5, 8))
        rows[3] = 0
        matrix = gramian(rows).matrix
        rule = GAF(2.0, anchor="random", seed=1)
        first, again = rule(Gramian(matrix)), rule(Gramian(matrix.clone()))
        # The anchor is the one row without a distance.
        (anchor,) = first.distances.isnan().nonzero().flatten().tolist()
        assert torch.equal(first.distances.nan_to_num(9), again.distances.nan_to_num(9))
        expected = from_start(rows, anchor, 2.0)
        np.testing.assert_allclose(first.distances, expected.distances, atol=1e-9)
        other = GAF(2.0, anchor="random", seed=2)(Gramian(matrix))
        redrawn += not torch.equal(other.distances.isnan(), first.distances.isnan())
        drawn.append(anchor)
    counts = np.bincount(drawn, minlength=5)
    assert counts[3] == 0
    assert counts[[0, 1, 2, 4]].min() >= 5
    assert redrawn > 20


@pytest.mark.parametrize("anchor", ["random", "best", "worst"])
def test_only_the_first_anchor_streams(anchor):
    assert GAF().fold is not None
    assert GAF(anchor=anchor).fold is None
    assert isinstance(GAF(anchor=anchor), Sequential)


def test_a_rule_shows_the_settings_that_have_an_effect():
    assert repr(GAF(0.8, seed=3)) == "GAF(tau=0.8)"
    assert repr(GAF(0.8, "best")) == "GAF(tau=0.8, anchor='best')"
    assert repr(GAF(0.8, "random", 3)) == "GAF(tau=0.8, anchor='random', seed=3)"


@pytest.mark.parametrize("anchor", ["first", "best"])
def test_sums_that_overflow_are_not_accepted(anchor):
    matrix = torch.full((4, 4), 1.5e308, dtype=torch.float64)
    decision = GAF(0.9, anchor=anchor)(Gramian(matrix))
    assert decision.weights.isfinite().all()
    assert accepted(decision) == [0, 1]
