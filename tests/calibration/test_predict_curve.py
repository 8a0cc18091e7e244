from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gafscope.calibration import predict_curve
from gafscope.errors import UserError
from gafscope.gradients import Gramian

SIZES = (2, 5, 20, 50, 150, 300)


def gramian(rows: np.ndarray) -> Gramian:
    return Gramian(torch.from_numpy(rows @ rows.T))


def fresh(k: int, u: int, noise_scale: float, random: np.random.Generator) -> Gramian:
    """Micro-gradients of u fresh samples with |mu|^2 = 200 and tr(Sigma) = 200 B."""
    return gramian(1 + random.normal(size=(k, 200)) * math.sqrt(noise_scale / u))


def per_sample(n: int, mean: float, random: np.random.Generator) -> np.ndarray:
    return mean + random.normal(size=(n, 300)) * np.arange(1, 301) ** -0.25


def disjoint_cosines(samples: np.ndarray, u: int, draws: int, random: np.random.Generator) -> float:
    """Average the cosine of disjoint pairs of microbatches, drawn without replacement."""
    found = []
    for _ in range(draws):
        order = random.permutation(len(samples))
        a, b = samples[order[:u]].mean(0), samples[order[u : 2 * u]].mean(0)
        found.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return float(np.mean(found))


def test_the_estimate_is_the_textbook_one():
    rows = np.random.default_rng(0).normal(size=(10, 6)) + 2
    products = [rows[i] @ rows[j] for i in range(10) for j in range(10) if i != j]
    mean_square = np.mean(products)
    trace = 7 * (np.mean(np.sum(rows**2, axis=1)) - mean_square)
    curve = predict_curve(gramian(rows), 7, sizes=(3, 30))
    assert curve.noise_scale.value == pytest.approx(trace / mean_square)
    expected = [1 / (1 + trace / mean_square / u) for u in (3, 30)]
    np.testing.assert_allclose(curve.table["cosine"], expected)
    assert curve.table["u"].tolist() == [3, 30]


def test_the_interval_covers_the_true_noise_scale():
    random = np.random.default_rng(1)
    covered, refused = [], 0
    for _ in range(400):
        curve = predict_curve(fresh(32, 20, 100.0, random), 20)
        refused += bool(curve.refused)
        if not curve.refused:
            covered.append(curve.noise_scale.low <= 100 <= curve.noise_scale.high)
            row = curve.table[curve.table["u"] == 100].iloc[0]
            assert row["low"] < row["cosine"] < row["high"]
            assert covered[-1] == (row["low"] <= 0.5 <= row["high"])
    assert refused == 0
    assert 0.92 <= np.mean(covered) <= 0.985


def test_it_refuses_when_there_is_no_common_direction():
    random = np.random.default_rng(2)
    curves = [predict_curve(gramian(random.normal(size=(32, 100))), 20) for _ in range(100)]
    refused = [curve for curve in curves if curve.refused]
    assert len(refused) >= 95
    curve = refused[0]
    assert "not clearly above 0" in curve.refused
    assert curve.table["cosine"].isna().all()
    assert math.isnan(curve.noise_scale.value)
    assert math.isnan(curve.size_for(0.5).value)


def test_microbatches_that_are_a_large_part_of_the_data():
    random = np.random.default_rng(3)
    samples = per_sample(600, 0.015, random)
    rows = samples[random.permutation(600)].reshape(60, 10, 300).mean(1)
    curve = predict_curve(gramian(rows), 10, SIZES, population=600)
    for row in curve.table.to_dict("records"):
        measured = disjoint_cosines(samples, int(row["u"]), 100, random)
        assert row["cosine"] == pytest.approx(measured, abs=0.03), row["u"]
    mean = samples.mean(0)
    scale = np.sum((samples - mean) ** 2) / 600 / (mean @ mean)
    assert curve.noise_scale.value == pytest.approx(scale, rel=0.1)
    # B of the data at hand, put into the formula for fresh samples, would be far off.
    uncorrected = 1 / (1 + scale / 300)
    assert uncorrected - disjoint_cosines(samples, 300, 100, random) > 0.06


def test_no_two_microbatches_larger_than_half_the_population():
    curve = predict_curve(
        fresh(32, 10, 50.0, np.random.default_rng(4)), 10, (100, 200, 201), population=400
    )
    assert curve.table["cosine"].isna().tolist() == [False, False, True]
    assert curve.size_for(0.99).value == math.inf
    assert curve.size_for(0.5).value <= 200
    assert "400 samples" in repr(curve)


def test_balanced_microbatches_have_the_noise_within_classes_only():
    random = np.random.default_rng(5)
    classes, each = 5, 200
    centres = 1.2 * random.normal(size=(classes, 300))
    samples = np.concatenate([per_sample(each, 0.1, random) + centre for centre in centres])
    within = per_sample(classes * each, 0, random)
    by_class = samples.reshape(classes, each, 300)

    def balanced(u: int) -> np.ndarray:
        parts = [group[random.permutation(each)] for group in by_class]
        return np.stack(parts).reshape(classes, -1, u // classes, 300).mean((0, 2))

    curve = predict_curve(gramian(balanced(20)), 20, (10, 50, 100, 33), population=1000, balanced=5)
    for row in curve.table.to_dict("records")[:3]:
        rows = np.concatenate([balanced(int(row["u"])) for _ in range(20)])
        pairs = rows.reshape(-1, 2, 300)
        a, b = pairs[:, 0], pairs[:, 1]
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert row["cosine"] == pytest.approx(cosines.mean(), abs=0.03)
    assert math.isnan(curve.table["cosine"].iloc[3])
    mean = samples.mean(0)
    scale = np.sum(within.var(0)) / (mean @ mean)
    assert curve.noise_scale.value == pytest.approx(scale, rel=0.1)
    assert np.sum(samples.var(0)) / (mean @ mean) > 2 * scale
    assert "balanced microbatches only (multiples of 5 samples)" in " ".join(curve.notes)
    assert curve.size_for(0.3).value % 5 == 0


def test_the_size_for_an_agreement_is_on_the_curve():
    gram = fresh(64, 20, 100.0, np.random.default_rng(6))
    curve = predict_curve(gram, 20, wanted=0.7)
    size = curve.size_for(0.7)
    assert size.low < size.value < size.high
    for u, reaches in ((size.value, True), (size.value - 1, False)):
        (cosine,) = predict_curve(gram, 20, (int(u),)).table["cosine"]
        assert (cosine >= 0.7) == reaches
    assert "0.7" in repr(curve)


def test_rows_that_are_not_finite_are_left_out_and_named():
    matrix = fresh(20, 20, 100.0, np.random.default_rng(7)).matrix
    keep = torch.arange(20) != 4
    rest = predict_curve(Gramian(matrix[keep][:, keep]), 20)
    matrix[4] = matrix[:, 4] = math.nan
    curve = predict_curve(Gramian(matrix), 20)
    assert curve.noise_scale == rest.noise_scale
    assert curve.notes == ("1 micro-gradients are not finite and left out.",)


def test_it_shows_itself_in_jupyter():
    random = np.random.default_rng(8)
    text = predict_curve(fresh(32, 20, 100.0, random), 20, (5, 50), wanted=0.5)._repr_html_()
    assert "critical batch size" in text
    assert "cosine at u = 50" in text
    assert "size for a cosine of 0.5" in text
    refused = predict_curve(gramian(random.normal(size=(16, 10000))), 20)
    assert "not clearly above 0" in refused._repr_html_()
    assert "not clearly above 0" in repr(refused)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"microbatch_size": 0}, "at least 1"),
        ({"sizes": ()}, "at least 1"),
        ({"sizes": (5, 0)}, "at least 1.*0"),
        ({"wanted": 1.0}, r"\(0, 1\)"),
        ({"population": 100}, "disjoint parts of the population.*100"),
        ({"balanced": 7}, "20 is no multiple of 7"),
        ({"balanced": 0}, "0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    gram = fresh(16, 20, 20.0, np.random.default_rng(9))
    with pytest.raises(UserError, match=message):
        predict_curve(gram, **{"microbatch_size": 20, **options})


def test_too_few_micro_gradients_are_refused():
    with pytest.raises(UserError, match=r"at least 8 finite micro-gradients.*has 7"):
        predict_curve(fresh(7, 20, 20.0, np.random.default_rng(10)), 20)
