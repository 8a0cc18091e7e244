"""Metrics at stages of training: what is measured, kept and compared."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from gafscope.analyses import get_analysis
from gafscope.analyses.metrics_tables import correlations, metrics_verdict, score_table
from gafscope.analyses.sample_scores import ALL_SCORES, score_samples, sign_disagreement
from gafscope.analyses.stage_measures import Measuring, measure_stages, stage_steps
from gafscope.analyses.trials import Trial
from gafscope.errors import UserError
from gafscope.gradients import supervised
from gafscope.metrics import METRICS

pytestmark = pytest.mark.timeout(300)

LOSS = supervised(nn.functional.cross_entropy)


def small(folder, **changes):
    settings = get_analysis("metrics").presets["quick"]
    train = replace(settings.train, steps=20, run_dir=str(folder), progress=False)
    changes = {"stages": 3, "rows": 8, "row_size": 5, "samples": 60, "seeds": 2} | changes
    return replace(settings, train=replace(train, **changes.pop("train", {})), **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    settings = small(folder)
    return folder, settings, get_analysis("metrics").run(settings)


def test_every_metric_and_score_at_every_stage(study):
    folder, _, result = study
    stages = pd.read_csv(folder / "stages.csv")
    assert sorted(stages["step"].unique()) == [0, 1, 4, 20]
    for rule in ("averaging", "GAF"):
        part = stages[stages["rule"] == rule]
        assert set(part[part["kind"] == "metric"]["name"]) == set(METRICS)
        assert set(part[part["kind"] == "score"]["name"]) == set(ALL_SCORES)
    distance = stages[(stages["name"] == "mean_distance") & (stages["kind"] == "metric")]
    by_seed = result.curves[
        (result.curves["kind"] == "metric") & (result.curves["name"] == "mean_distance")
    ]
    means = by_seed.groupby(["rule", "step"])["value"].mean()
    for row in distance.to_dict("records"):
        assert row["value"] == pytest.approx(means[row["rule"], row["step"]])
        assert row["value_low"] < row["value"] < row["value_high"]


def test_the_table_names_what_ranks_alike(study):
    _, _, result = study
    metrics = result.table[result.table["data"].str.endswith("averaging: metrics")]
    cosine = metrics[metrics["metric"] == "cosine_stiffness"].iloc[0]
    assert (cosine["most_like"], cosine["rank_correlation"]) == ("mean_distance", -1.0)
    assert "mean_distance" in result.verdict
    assert "plain loss" in result.verdict


def test_a_stage_is_kept_and_the_next_call_goes_on(tmp_path):
    settings = small(tmp_path / "a")
    measuring, stages = Measuring(8, 5, 60), [0, 2, 6]
    trial = Trial("digits", "averaging", 0, replace(settings.train, rule="mean", steps=6))
    begun = measure_stages(trial, measuring, stages, tmp_path / "a")
    first = [next(begun), next(begun)]
    begun.close()
    kept = sorted((tmp_path / "a" / "measures").rglob("*.csv"))
    assert [path.name for path in kept] == ["step00000000.csv", "step00000002.csv"]
    times = [path.stat().st_mtime_ns for path in kept]
    whole = list(measure_stages(trial, measuring, stages, tmp_path / "a"))
    assert [path.stat().st_mtime_ns for path in kept] == times
    fresh = list(measure_stages(trial, measuring, stages, tmp_path / "b"))
    for one, two in zip([*first, whole[2]], fresh, strict=True):
        pd.testing.assert_frame_equal(one, two)


def test_other_settings_do_not_mix(study):
    _, settings, _ = study
    for changed in (
        replace(settings, samples=70),
        replace(settings, train=replace(settings.train, lr=0.01)),
    ):
        with pytest.raises(UserError, match="other settings"):
            get_analysis("metrics").run(changed)


def test_without_flipped_labels_only_metrics(tmp_path):
    settings = small(tmp_path, stages=2, seeds=1, rules=("mean",), train={"label_noise": 0.0})
    result = get_analysis("metrics").run(settings)
    assert "No label is known to be flipped" in result.verdict
    assert "score" not in result.table


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": 1}, ["stages", "2"]),
        ({"rows": 2}, ["rows", "3"]),
        ({"seeds": 0}, ["seeds", "1"]),
        ({"rows": 400}, ["400 x 5 = 2000"]),
        ({"rules": ("gav",)}, ["'gaf'"]),
    ],
)
def test_mistakes_are_explained(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        get_analysis("metrics").run(small(tmp_path, **changes))
    for word in words:
        assert word in str(error.value)


def test_stages_are_distinct_and_ascend():
    assert stage_steps(5, 12) == [0, 1, 2, 3, 4, 5]
    assert stage_steps(1500, 12)[-3:] == [397, 772, 1500]


def test_sign_disagreement_against_a_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    data = torch.randn(12, 4), torch.randint(3, (12,))
    rows = []
    for i in range(12):
        model.zero_grad()
        LOSS(model, (data[0][i : i + 1], data[1][i : i + 1])).mean().backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    for i, found in enumerate(sign_disagreement(model, LOSS, data).tolist()):
        others = sum(row for j, row in enumerate(rows) if j != i)
        assert found == pytest.approx(float((rows[i].sign() != others.sign()).double().mean()))


def test_scores_are_aligned_and_leave_the_model_alone():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = torch.randn(40, 4), torch.randint(3, (40,))
    true = (data[1] + (torch.arange(40) % 5 == 0)) % 3
    table = score_samples(model, LOSS, data, true, samples=30, seed=3)
    assert len(table) == 30
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    picked = torch.tensor(table["sample"].tolist())
    assert table["flipped"].tolist() == (data[1] != true)[picked].tolist()
    model.eval()
    losses = LOSS(model, (data[0][picked], data[1][picked])).tolist()
    assert table["loss"].tolist() == pytest.approx(losses, abs=1e-6)


def made(values):
    """Lay {name: values a stage} out as measured metrics of one run."""
    return pd.DataFrame(
        [
            {"data": "d", "rule": "r", "seed": 0, "step": step, "name": name, "value": value}
            for name, line in values.items()
            for step, value in enumerate(line)
        ]
    )


def test_correlations_by_hand():
    ascending = [1.0, 2, 3, 4, 5, 6, 7]
    values = {
        "b": ascending,
        "a": [-math.exp(value) for value in ascending],
        "swapped": [1.0, 2, 3, 4, 5, 7, 6],
        "refused": [math.nan, math.nan, 3, 4, 5, 6, 7],
        "constant": [2.0] * 7,
    }
    related = correlations(made(values))
    found = related.set_index(["name", "other"])["value"]
    assert list(dict.fromkeys(related["name"])) == list(values)
    assert found["b", "a"] == pytest.approx(-1)
    # Two neighbours changed places: 1 - 6 * 2 / (7 * 48).
    assert found["b", "swapped"] == pytest.approx(1 - 12 / 336)
    assert np.isnan(found["b", "refused"]), "5 stages are too few"
    assert np.isnan(found["b", "constant"])
    text = metrics_verdict(related, made(values), scores_of({"far": [[0.7]], "loss": [[0.5]]}))
    assert "Linked by such pairs: b, a, swapped." in text
    assert "refused (5 of 7)" in text
    assert "AUROC of 0.700 against 0.500 of the plain loss" in text


def scores_of(areas):
    """Lay {score: values by seed and stage} out as measured scores."""
    return pd.DataFrame(
        [
            {"data": "d", "rule": "r", "seed": seed, "step": step, "name": name, "value": value}
            for name, seeds in areas.items()
            for seed, line in enumerate(seeds)
            for step, value in enumerate(line)
        ]
    )


def test_scores_are_compared_with_the_loss_seed_by_seed():
    areas = {"far": [[0.6, 0.9, 0.8], [0.7, 0.8, 0.9]], "loss": [[0.5, 0.6, 0.7], [0.5, 0.7, 0.6]]}
    far, loss = score_table(scores_of(areas)).to_dict("records")
    assert (far["best_step"], loss["best_step"]) == ("1", "1")
    assert far["auroc_at_best"] == pytest.approx(0.85)
    assert far["over_loss_at_end"] == pytest.approx((0.1 + 0.3) / 2)
    assert far["over_loss_mean"] == pytest.approx((0.5 + 0.6) / 6)
    assert math.isnan(loss["over_loss_mean"])
    assert far["over_loss_at_end_low"] < 0 < far["over_loss_at_end_high"]
