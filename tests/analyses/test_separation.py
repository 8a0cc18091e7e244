import math

import numpy as np
import pytest

from gafscope.analyses.separation import auroc, auroc_difference, separation
from gafscope.errors import UserError


def share_of_pairs(scores, positive):
    """The definition: over all pairs of a positive and a negative sample."""
    wins = [
        (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
        for i in np.flatnonzero(positive)
        for j in np.flatnonzero(~positive)
    ]
    return float(np.mean(wins))


def draw(seed, n=60, shift=1.0):
    generator = np.random.default_rng(seed)
    positive = generator.random(n) < 0.4
    return generator.normal(size=n) + shift * positive, positive


def test_it_is_the_share_of_pairs_in_the_right_order_ties_counting_half():
    scores, positive = draw(0)
    scores = scores.round()  # many ties
    assert auroc(scores, positive).value == pytest.approx(share_of_pairs(scores, positive))


def test_samples_without_a_score_are_left_out():
    scores, positive = draw(1)
    scores[:7] = math.nan
    found = auroc(scores, positive)
    assert found.value == pytest.approx(share_of_pairs(scores[7:], positive[7:]))
    assert found.n == 53


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # Normal scores a distance of 1 apart: P(x > y) = Phi(1 / sqrt 2).
    truth = 0.5 * (1 + math.erf(0.5))
    hits = [found.low <= truth <= found.high for found in (auroc(*draw(s)) for s in range(400))]
    assert 0.925 < np.mean(hits) < 0.98


def test_perfect_scores_carry_no_interval():
    found = auroc([1.0, 2.0, 3.0, 4.0], [False, False, True, True])
    assert found.value == 1.0
    assert not found.has_interval


def test_one_kind_alone_is_not_rated():
    assert math.isnan(auroc([1.0, 2.0, 3.0], [False, False, True]).value)
    assert math.isnan(auroc_difference([1.0, 2.0], [1.0, 2.0], [True, True]).value)


def test_a_difference_knows_that_both_scores_saw_the_same_samples():
    scores, positive = draw(2)
    noise = np.random.default_rng(3).normal(size=len(scores))
    other = scores + 0.3 * noise
    found = auroc_difference(scores, other, positive)
    one, two = auroc(scores, positive), auroc(other, positive)
    assert found.value == pytest.approx(one.value - two.value)
    apart = math.hypot(one.high - one.low, two.high - two.low)
    assert found.high - found.low < 0.6 * apart
    same = auroc_difference(scores, scores, positive)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_table_compares_with_the_last_score():
    scores, positive = draw(4)
    table = separation({"good": scores, "bad": -scores}, positive)
    assert table["score"].tolist() == ["good", "bad"]
    good, bad = table["auroc"]
    assert good == pytest.approx(1 - bad)
    assert table["over_bad"][0] == pytest.approx(good - bad)
    assert table["over_bad_low"][0] > 0
    assert table["over_bad"].isna()[1]


@pytest.mark.parametrize("function", [auroc, lambda s, p: auroc_difference(s, s, p)])
def test_sizes_that_do_not_fit_are_refused(function):
    with pytest.raises(UserError, match=r"\(3,\) and \(2,\)"):
        function([1.0, 2.0, 3.0], [True, False])
