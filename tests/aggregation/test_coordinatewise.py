"""Sign agreement, SAND-mask, trimmed mean and coordinate median."""

from __future__ import annotations

import math

import explicit_coordinates as explicit
import numpy as np
import pytest
import torch
from random_rows import cases, flat, gradient_rows

from gafscope.aggregation import (
    Aggregate,
    CoordinateMedian,
    Mean,
    RowRule,
    SANDMask,
    SignAgreement,
    TrimmedMean,
)
from gafscope.errors import UserError
from gafscope.gradients import GradientRows

RULES = [SignAgreement(), SANDMask(), TrimmedMean(1), CoordinateMedian()]


def combine(rule: RowRule, rows: np.ndarray) -> Aggregate:
    named = gradient_rows(rows)
    return rule.aggregate(named, named.gramian())


def one(rule: RowRule, values: list[list[float]], dtype=torch.float64) -> Aggregate:
    rows = GradientRows({"w": torch.tensor(values, dtype=dtype)})
    return rule.aggregate(rows, rows.gramian())


@pytest.mark.parametrize(
    ("rule", "reference", "minimum"),
    [
        (SignAgreement(0.5), lambda rows: explicit.sign_agreement(rows, 0.5), 2),
        (SignAgreement(1.0), lambda rows: explicit.sign_agreement(rows, 1.0), 2),
        (SignAgreement(0.0), lambda rows: explicit.sign_agreement(rows, 0.0), 2),
        (CoordinateMedian(), explicit.median, 1),
        (TrimmedMean(1), lambda rows: explicit.trimmed_mean(rows, 1), 3),
        (TrimmedMean(3), lambda rows: explicit.trimmed_mean(rows, 3), 7),
    ],
)
def test_updates_equal_the_explicit_rule(rule, reference, minimum):
    steps = 0
    for rows, _, _ in cases(150):
        if len(rows) < minimum or rows.shape[1] < 2:
            continue
        result = combine(rule, rows)
        good = np.isfinite(rows).all(1)
        if good.sum() < minimum:
            assert not result.decision.step
            assert result.update == {}
            continue
        expected = reference(rows)
        if not result.decision.step:
            assert not expected.any()
            continue
        steps += 1
        scale = np.abs(rows[good]).max(initial=1e-30)
        np.testing.assert_allclose(flat(result.update), expected, rtol=1e-12, atol=1e-14 * scale)
        assert result.decision.accepted.tolist() == good.tolist()
        assert result.decision.weights.tolist() == pytest.approx((good / good.sum()).tolist())
    assert steps > 30


def test_sand_mask_equals_the_explicit_rule_tensor_by_tensor():
    random, shares = np.random.default_rng(0), []
    for k in (2, 3, 6, 20):
        rows = random.normal(size=(k, 30)) + 0.5
        rows[-1, 3] = np.nan if k > 3 else rows[-1, 3]
        result = combine(SANDMask(share=0.2, sharpness=0.7), rows)
        good = explicit.finite(rows)
        parts = [explicit.sand_mask(part, 0.2, 0.7) for part in (good[:, :1], good[:, 1:])]
        np.testing.assert_allclose(flat(result.update), np.concatenate(parts), rtol=1e-10)
        kept = np.mean(np.concatenate(parts) != 0)
        shares.append(kept)
        assert result.scalars["kept"] == pytest.approx(kept)
    assert 0 < min(shares) < 0.9


def test_by_hand():
    rows = [[1.0, 2.0, 0.0, 5.0], [3.0, -2.0, 1.0, 6.0], [2.0, 4.0, 1.0, -100.0]]
    result = one(SignAgreement(1.0), rows)
    assert result.update["w"].tolist() == [2.0, 0.0, 0.0, 0.0]
    assert result.scalars == {"kept": 0.25}
    # Signs add up to 3, 1, 2, 1: a share of 2/3 keeps the first and the third.
    assert one(SignAgreement(2 / 3), rows).update["w"].tolist() == [2.0, 0.0, 2 / 3, 0.0]
    assert one(TrimmedMean(1), rows).update["w"].tolist() == [2.0, 2.0, 1.0, 5.0]
    assert one(CoordinateMedian(), rows[:2]).update["w"].tolist() == [2.0, 0.0, 0.5, 5.5]
    # Variances 1 and 2, signs agree at the first only: tanh(1 / 1 * (1 - .5)).
    masked = one(SANDMask(share=0.5, sharpness=1.0), [[1.0, 1.0], [2.0, -1.0], [3.0, 1.0]])
    assert masked.update["w"].tolist() == pytest.approx([4.0, 0.0])


def test_sand_mask_weighs_a_coordinate_by_its_variance():
    rows = [[1.0, 10.0], [2.0, 20.0]]
    masks = [math.tanh(0.3 / variance) for variance in (0.5, 50.0)]
    expected = [g * m / (sum(masks) / 2) for g, m in zip((1.5, 15.0), masks, strict=True)]
    result = one(SANDMask(share=0.7, sharpness=1.0), rows)
    assert result.update["w"].tolist() == pytest.approx(expected)


def test_sand_mask_takes_rows_that_are_all_equal():
    result = one(SANDMask(), [[1.0, 0.0, -2.0]] * 3)
    assert result.update["w"].tolist() == pytest.approx([1.5, 0.0, -3.0])


@pytest.mark.parametrize("rule", [SignAgreement(), SANDMask()])
def test_a_step_on_which_no_coordinate_agrees_is_skipped(rule):
    result = one(rule, [[1.0, -2.0], [-1.0, 3.0]])
    assert not result.decision.step
    assert result.update == {}
    assert result.scalars == {"kept": 0.0}
    assert not result.decision.accepted.any()
    assert result.decision.finite.all()


@pytest.mark.parametrize("rule", [SignAgreement(), SANDMask(), TrimmedMean(1)])
def test_too_few_finite_rows_skip(rule):
    rows = [[1.0, 1.0], [math.nan, 1.0], [1.0, math.inf]]
    assert not one(rule, rows).decision.step
    assert one(CoordinateMedian(), rows).update["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_updates_have_the_type_and_shape_of_the_parameters(rule, dtype):
    random = torch.Generator().manual_seed(0)
    rows = GradientRows(
        {
            "scalar": torch.rand(5, generator=random).to(dtype),
            "matrix": torch.rand(5, 2, 3, generator=random).to(dtype),
        }
    )
    update = rule.aggregate(rows, rows.gramian()).update
    assert {name: (part.shape, part.dtype) for name, part in update.items()} == {
        "scalar": ((), dtype),
        "matrix": ((2, 3), dtype),
    }


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_rows_does_not_matter(rule):
    rows = np.random.default_rng(1).normal(size=(7, 12)) + 0.7
    order = [3, 1, 6, 0, 2, 5, 4]
    np.testing.assert_allclose(
        flat(combine(rule, rows).update), flat(combine(rule, rows[order]).update), rtol=1e-12
    )


@pytest.mark.parametrize("rule", [SignAgreement(), TrimmedMean(1), CoordinateMedian()])
def test_scaling_all_rows_scales_the_update(rule):
    rows = np.random.default_rng(2).normal(size=(5, 12)) + 1
    np.testing.assert_array_equal(
        flat(combine(rule, 8 * rows).update), 8 * flat(combine(rule, rows).update)
    )


def test_distances_are_those_to_the_running_sum():
    rows = gradient_rows(np.random.default_rng(3).normal(size=(4, 9)))
    expected = Mean()(rows.gramian()).distances[1:]
    for rule in RULES:
        found = rule.aggregate(rows, rows.gramian()).decision.distances
        assert torch.equal(found[1:], expected)


def test_bad_arguments():
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match=r"share of SignAgreement .* must lie in \[0, 1\]"):
            SignAgreement(share)
    with pytest.raises(UserError, match="must lie below 1"):
        SANDMask(share=1.0)
    with pytest.raises(UserError, match="sharpness of SANDMask must be positive"):
        SANDMask(sharpness=0.0)
    with pytest.raises(UserError, match="trim of TrimmedMean must be a whole number"):
        TrimmedMean(0)
    with pytest.raises(UserError, match=r"k = 4; use microbatches=5 or more"):
        one(TrimmedMean(2), [[1.0]] * 4)
    for rule in (SignAgreement(), SANDMask()):
        with pytest.raises(UserError, match="at least 2 micro-gradients"):
            one(rule, [[1.0]])
