"""Rules that decide by layer and by bucket."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gafscope.aggregation import (
    GAF,
    AdaptiveGAF,
    ByBucket,
    ByLayer,
    Decision,
    HalvingGAF,
    Mean,
    SignAgreement,
)
from gafscope.errors import UserError
from gafscope.gradients import GradientRows


def random_rows(k: int = 6, seed: int = 0) -> GradientRows:
    random = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "b": (5,), "c": (), "d": (2, 2, 2)}
    return GradientRows(
        {
            name: torch.randn(k, *shape, generator=random).double() + 0.4
            for name, shape in shapes.items()
        }
    )


def apply(rule, rows: GradientRows):
    return rule.aggregate(rows, rows.gramian())


@pytest.mark.parametrize("rule", [GAF(0.7), HalvingGAF(0.9), Mean()])
def test_each_layer_is_what_the_rule_makes_of_it_alone(rule):
    skipped = 0
    for seed in range(20):
        rows = random_rows(seed=seed)
        result = apply(ByLayer(rule), rows)
        shares, sizes, anywhere = [], [], torch.zeros(6, dtype=torch.bool)
        for name, values in rows.named.items():
            alone = GradientRows({name: values})
            decision = rule(alone.gramian())
            if decision.step:
                expected = alone.combine(decision.weights)[name]
                torch.testing.assert_close(result.update[name], expected, rtol=0, atol=0)
            else:
                assert name not in result.update
                skipped += 1
            shares.append(float(decision.accepted.double().mean()))
            sizes.append(values[0].numel())
            anywhere |= decision.accepted
        assert result.decision.accepted.tolist() == anywhere.tolist()
        assert result.scalars["accepted_share"] == pytest.approx(np.average(shares, weights=sizes))
        assert result.scalars["skipped_share"] == 1 - len(result.update) / 4
    assert (skipped > 0) == (rule != Mean())


def test_by_hand():
    rows = GradientRows(
        {
            "agree": torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]),
            "oppose": torch.tensor([[1.0], [-1.0], [-2.0]]),
        }
    )
    result = apply(ByLayer(GAF(0.5)), rows)
    assert {name: part.tolist() for name, part in result.update.items()} == {
        "agree": [2.0, 0.0, 0.0]
    }
    assert result.decision.accepted.tolist() == [True, True, False]
    assert result.decision.weights.tolist() == [0.5, 0.5, 0.0]
    # The second row lies at distance 0 in 3 numbers and at 2 in 1; so on for the third: 2 and 2.
    assert result.decision.distances.tolist()[1:] == [0.5, 2.0]
    assert result.scalars == {"accepted_share": pytest.approx(0.5), "skipped_share": 0.5}


def test_a_row_that_is_not_finite_in_one_layer_takes_part_in_none():
    rows = random_rows(k=3)
    rows.named["b"][0, 0] = math.nan
    for rule in (ByLayer(Mean()), ByBucket(Mean(), bytes=8)):
        result = apply(rule, rows)
        assert result.decision.accepted.tolist() == [False, True, True]
        assert result.decision.finite.tolist() == [False, True, True]
        torch.testing.assert_close(result.update["a"], rows.named["a"][1:].mean(0))


def test_skipping_everywhere_skips_the_step():
    rows = GradientRows({"a": torch.tensor([[1.0], [-1.0]]), "b": torch.tensor([[-1.0], [1.0]])})
    result = apply(ByLayer(GAF(0.9)), rows)
    assert not result.decision.step
    assert result.update == {}
    assert result.scalars == {"accepted_share": 0.0, "skipped_share": 1.0}


@pytest.mark.parametrize(
    ("size", "buckets"),
    [
        # Bytes of float64: a 96, b 40, c 8, d 64; filled from d to a, closed once full.
        (1, ["d", "c", "b", "a"]),
        (65, ["dc", "ba"]),
        (73, ["dcb", "a"]),
        (113, ["dcba"]),
        (25_000_000, ["dcba"]),
    ],
)
def test_buckets_fill_in_reverse_and_close_when_full(size, buckets):
    seen = []

    def rule(gramian) -> Decision:
        seen.append(gramian.matrix)
        return Mean()(gramian)

    rows = random_rows()
    layers = rows.gramian().layers
    apply(ByBucket(rule, bytes=size), rows)
    assert len(seen) == len(buckets)
    for matrix, names in zip(seen, buckets, strict=True):
        torch.testing.assert_close(matrix, sum(layers[name] for name in names))


def test_a_bucket_holds_one_type():
    rows = random_rows()
    rows.named["c"] = rows.named["c"].float()
    seen = []

    def rule(gramian) -> Decision:
        seen.append(gramian.matrix)
        return Mean()(gramian)

    apply(ByBucket(rule), rows)
    layers = rows.gramian().layers
    torch.testing.assert_close(seen[0], layers["d"] + layers["b"] + layers["a"])
    torch.testing.assert_close(seen[1], layers["c"])


def test_one_bucket_of_everything_is_the_rule_itself():
    rows = random_rows()
    rule = GAF(0.8)
    decision = rule(rows.gramian())
    result = apply(ByBucket(rule), rows)
    assert torch.equal(result.decision.weights, decision.weights)
    torch.testing.assert_close(
        result.decision.distances, decision.distances, rtol=1e-12, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("scope", [ByLayer, ByBucket])
def test_rules_that_cannot_decide_by_parts_are_refused(scope):
    with pytest.raises(UserError, match=f"{scope.__name__} needs a weighting"):
        scope(SignAgreement())
    with pytest.raises(UserError, match=f"{scope.__name__} cannot hold AdaptiveGAF"):
        scope(AdaptiveGAF())
    with pytest.raises(UserError, match="needs at least 2 micro-gradients"):
        apply(scope(GAF()), random_rows(k=1))


def test_bad_sizes():
    with pytest.raises(UserError, match="bytes of ByBucket must be a whole number"):
        ByBucket(GAF(), bytes=0)
