"""Figure 4: distance by microbatch size, measured and predicted, and the noise scale."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from gafscope.analyses import get_analysis
from gafscope.analyses.curve_measure import measured_distance
from gafscope.data import MicrobatchSampler, Split
from gafscope.errors import UserError
from gafscope.gradients import supervised
from gafscope.plots.studies import FIGURES

LOSS = supervised(nn.functional.cross_entropy)


def small(folder, **changes):
    settings = get_analysis("batch-size-curve").presets["quick"]
    train = {"steps": 60, "run_dir": str(folder), "progress": False} | changes.pop("train", {})
    changes = {
        "sizes": (5, 50, 400),
        "pairs": 60,
        "stages": (60,),
        "noise_stages": 2,
        "seeds": 2,
    } | changes
    return replace(settings, train=replace(settings.train, **train), **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("curve"))
    analysis = get_analysis("batch-size-curve")
    measured = analysis.measure(settings)
    return settings, measured, analysis.conclude(settings, measured.runs, measured.curves)


def test_the_plan_is_what_is_trained(study):
    settings, measured, _ = study
    folders = [path for path in measured.folder.iterdir() if (path / "config.yaml").exists()]
    assert len(get_analysis("batch-size-curve").plan(settings)) == len(folders) == 2


def test_the_measured_distance_is_that_of_the_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    labels = torch.randint(3, (24,))
    split = Split(torch.randn(24, 4), labels, labels)
    found = measured_distance(model, LOSS, split, 6, 2, seed=3)
    batches = MicrobatchSampler(split, microbatches=2, microbatch_size=6, seed=3)
    distances = []
    for _ in range(2):
        inputs, targets = next(batches)
        rows = []
        for half in (slice(0, 6), slice(6, 12)):
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs[half]), targets[half]).backward()
            rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
        distances.append(1 - float(torch.cosine_similarity(*rows, dim=0)))
    assert found == pytest.approx(np.mean(distances), abs=1e-6)


def test_prediction_meets_measurement_early_in_training(study):
    _, measured, conclusion = study
    runs = measured.runs[measured.runs["kind"] == "distance"]
    assert runs["u"].tolist() == [5, 50, 400] * 2
    assert not runs["refused"].any()
    assert (runs["predicted"] - runs["measured"]).abs().max() < 0.06
    assert runs[runs["u"] == 400]["measured"].max() < 0.8
    assert (runs["low"] < runs["predicted"]).all()
    assert (runs["predicted"] < runs["high"]).all()
    row = conclusion.table[conclusion.table["u"] == 50].iloc[0]
    own = runs[runs["u"] == 50]
    assert row["measured"] == pytest.approx(own["measured"].mean())
    assert row["error"] == pytest.approx((own["predicted"] - own["measured"]).mean())
    assert row["largest_error"] == pytest.approx((own["predicted"] - own["measured"]).abs().max())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_prediction_meets_measurement_wherever_it_does_not_refuse(tmp_path):
    settings = get_analysis("batch-size-curve").presets["quick"]
    train = replace(settings.train, run_dir=str(tmp_path), progress=False)
    runs = get_analysis("batch-size-curve").measure(replace(settings, train=train)).runs
    runs = runs[runs["kind"] == "distance"]
    known = runs[~runs["refused"]]
    assert len(runs) == 4 * 3 * 7
    assert len(known) > len(runs) / 2
    assert (known["predicted"] - known["measured"]).abs().max() < 0.06
    assert runs[runs["refused"]]["predicted"].isna().all()


def test_the_noise_scale_is_followed_from_the_untrained_network(study):
    _, measured, conclusion = study
    scales = conclusion.table[conclusion.table["kind"] == "noise scale"].set_index("step")
    assert scales.index.tolist() == [0, 1, 60]
    last = measured.curves[(measured.curves["step"] == 60) & ~measured.curves["refused"]]
    assert scales.loc[60, "noise_scale"] == pytest.approx(math.prod(last["predicted"]) ** 0.5)
    assert "noise scale goes from" in conclusion.verdict


def test_what_is_refused_counts_and_predicts_nothing(study):
    settings, measured, _ = study
    runs = measured.runs.copy()
    refused = (runs["seed"] == 1) & (runs["step"] == 60)
    runs.loc[refused, ["predicted", "low", "high"]] = math.nan
    runs.loc[refused, "refused"] = True
    conclusion = get_analysis("batch-size-curve").conclude(settings, runs, measured.curves)
    row = conclusion.table[conclusion.table["u"] == 50].iloc[0]
    own = runs[(runs["u"] == 50) & (runs["seed"] == 0)].iloc[0]
    assert (row["seeds"], row["refused"]) == (2, 1)
    assert row["predicted"] == own["predicted"]
    assert row["measured"] != own["measured"]
    assert "2 predictions of a curve from one Gramian 1 are refused" in conclusion.verdict


def test_measured_again_is_read(study):
    settings, measured, _ = study
    again = get_analysis("batch-size-curve").measure(settings)
    pd.testing.assert_frame_equal(again.runs, measured.runs)


def test_the_figure(study):
    _, measured, conclusion = study
    figures = FIGURES["batch-size-curve"](conclusion.table, measured.curves)
    stage, scales = figures["batch-size-curve"].axes
    assert "after 60 steps" in stage.get_title(loc="left")
    assert scales.get_yscale() == "log"


def test_balanced_microbatches_are_balanced_everywhere(tmp_path):
    train = {"balance": "given", "steps": 1}
    settings = small(tmp_path, seeds=1, sizes=(20, 100), stages=(1,), rows=16, train=train)
    runs = get_analysis("batch-size-curve").measure(settings).runs
    assert runs[runs["kind"] == "distance"]["u"].tolist() == [20, 100]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 7}, ["rows", "8"]),
        ({"sizes": ()}, ["sizes"]),
        ({"sizes": (5, 700)}, ["700", "--sizes"]),
        ({"sizes": (15,), "rows": 8, "train": {"balance": "given"}}, ["multiple", "15"]),
        ({"stages": (61,)}, ["stages", "60", "61"]),
        ({"pairs": 0}, ["pairs"]),
    ],
)
def test_mistakes_are_told_before_the_first_training(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        get_analysis("batch-size-curve").run(small(tmp_path, **changes))
    for word in words:
        assert word in str(error.value)
    assert not list(tmp_path.glob("*/config.yaml"))
