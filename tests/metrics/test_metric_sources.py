"""What every metric shares: sources, layers, scaling, odd rows and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from metric_rows import gradient_rows, random_rows

from gafscope import metrics
from gafscope.errors import UserError
from gafscope.gradients import GradientRows, Gramian
from gafscope.metrics import METRICS

# By what power of a common factor on all rows each value grows; 0 unless named.
POWER = {"l2_distance": 1, "confusion": 2}
EACH_LENGTH = {
    "mean_distance", "distance_q05", "distance_median", "distance_q95", "fraction_opposed",
    "sign_stiffness", "cosine_stiffness", "unanimous_sign", "majority_sign",
}  # fmt: skip

every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)


def numbers(estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high, estimate.n]


def same(found, expected, rel=1e-7) -> bool:
    return numbers(found) == pytest.approx(numbers(expected), rel=rel, abs=1e-9, nan_ok=True)


@every_metric
@pytest.mark.parametrize("factor", [1e-6, 1e5])
def test_scaling_all_rows(metric, factor):
    rows = random_rows(14)
    found, scaled = (metric.function(gradient_rows(part)) for part in (rows, rows * factor))
    grown = factor ** POWER.get(metric.name, 0)
    assert np.array(numbers(scaled)[:3]) == pytest.approx(
        np.array(numbers(found)[:3]) * grown, rel=1e-7, nan_ok=True
    )


@pytest.mark.parametrize("name", sorted(EACH_LENGTH))
def test_what_sees_directions_only_ignores_the_length_of_each_row(name):
    rows = random_rows(14)
    lengths = np.random.default_rng(1).uniform(0.01, 100, size=(14, 1))
    function = METRICS[name].function
    assert same(function(gradient_rows(rows * lengths)), function(gradient_rows(rows)))


@every_metric
def test_the_order_of_rows_is_no_matter(metric):
    rows = random_rows(14)
    shuffled = np.random.default_rng(2).permutation(rows)
    assert same(metric.function(gradient_rows(shuffled)), metric.function(gradient_rows(rows)))


@every_metric
def test_rows_and_their_gramian_give_the_same(metric):
    rows = gradient_rows(random_rows(14))
    if metric.needs_rows:
        with pytest.raises(UserError, match=r"needs the gradients themselves.*got a Gramian"):
            metric.function(rows.gramian())
    else:
        assert same(metric.function(rows.gramian()), metric.function(rows))


@every_metric
def test_a_layer_is_the_model_of_that_parameter_alone(metric):
    rows = GradientRows({"a": torch.from_numpy(random_rows(14)), "b": torch.ones(14, 2)})
    alone = GradientRows({"a": rows.named["a"]})
    assert same(metric.function(rows, layer="a"), metric.function(alone))
    if not metric.needs_rows:
        assert same(metric.function(rows.gramian(), layer="a"), metric.function(alone))
    with pytest.raises(UserError, match="Unknown layer 'c'"):
        metric.function(rows, layer="c")


@every_metric
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_left_out_and_counted(metric, bad):
    rows = random_rows(14)
    expected = metric.function(gradient_rows(rows))
    spoilt = np.insert(rows, [0, 5], 1.0, axis=0)
    spoilt[0, 0] = spoilt[6, 3] = bad
    found = metric.function(gradient_rows(spoilt))
    assert same(found, expected)
    assert found.n == 14
    assert "2 of 16 rows not finite, left out" in found.note


@every_metric
def test_too_few_rows(metric):
    spoilt = np.vstack([random_rows(1), np.full((2, 7), np.nan)])
    with pytest.raises(UserError, match=r"needs at least \d finite .* there are 1 \(2 more are"):
        metric.function(gradient_rows(spoilt))


def test_a_zero_row_is_at_distance_one():
    found = metrics.mean_distance(gradient_rows([[1.0, 0], [1, 0], [0, 0]]))
    assert found.value == pytest.approx(2 / 3)


def test_half_precision_rows_are_measured_exactly():
    rows = torch.from_numpy(random_rows(14)).bfloat16()
    exact = metrics.gsnr(GradientRows({"w": rows.double()}))
    assert same(metrics.gsnr(GradientRows({"w": rows})), exact)


def test_a_gramian_without_layers():
    gramian = gradient_rows(random_rows(4)).gramian(layers=False)
    with pytest.raises(UserError, match="layers=True"):
        metrics.mean_distance(gramian, layer="a")
    with pytest.raises(UserError, match="layers=True"):
        metrics.by_layer(metrics.mean_distance, gramian)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda rows: metrics.mean_distance(torch.eye(3)), "but got Tensor"),
        (lambda rows: metrics.distance_quantile(rows, 1.5), r"q must lie in \[0, 1\].*1.5"),
        (lambda rows: metrics.noise_scale(rows, 0), "microbatch_size.*at least 1.*0"),
        (lambda rows: metrics.mahalanobis_distance(rows, shrinkage=0), "singular"),
        (lambda rows: metrics.mahalanobis_distance(rows, shrinkage=2), "shrinkage"),
        (lambda rows: metrics.stiffness_by_class(rows, [0, 1]), "each row, 5 of them, but got 2"),
        (lambda rows: metrics.table(rows, microbatch_size=0), "microbatch_size"),
    ],
)
def test_mistakes(call, words):
    with pytest.raises(UserError, match=words):
        call(gradient_rows(random_rows(5)))


def test_by_layer():
    rows = gradient_rows(random_rows(9))
    found = metrics.by_layer(metrics.cosine_stiffness, rows.gramian())
    assert list(found) == ["a", "b"]
    assert same(found["b"], metrics.cosine_stiffness(rows, layer="b"))
    assert same(metrics.by_layer(metrics.gsnr, rows)["a"], metrics.gsnr(rows, layer="a"))


def test_table_of_rows_by_layer():
    rows = gradient_rows(random_rows(20, signal=2.0))
    table = metrics.table(rows, layers=True, microbatch_size=4)
    assert list(table.columns) == ["metric", "layer", "value", "low", "high", "n", "note"]
    assert list(table.layer.unique()) == ["", "a", "b"]
    assert list(table[table.layer == "b"].metric) == list(METRICS)
    line = table[(table.metric == "noise_scale") & (table.layer == "b")].iloc[0]
    expected = metrics.noise_scale(rows, 4, layer="b")
    assert list(line[["value", "low", "high", "n"]]) == pytest.approx(numbers(expected))
    assert table[table.metric == "gsnr"].value.notna().all()


def test_table_says_why_a_metric_is_not_available():
    table = metrics.table(Gramian(torch.eye(3))).set_index("metric")
    assert set(table.layer) == {""}
    assert "GradientRows" in table.note["gsnr"]
    assert "needs at least 4" in table.note["effective_dimension"]
    assert math.isnan(table.value["effective_dimension"])
    assert table.value["mean_distance"] == 1.0


def test_registry_describes_every_metric():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.meaning
        assert metric.range
        assert metric.source
