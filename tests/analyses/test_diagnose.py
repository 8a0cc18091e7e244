"""Diagnoses of models whose gradients are known: each sample's gradient is the sample itself."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from gafscope.analyses.diagnose import diagnose
from gafscope.errors import UserError
from gafscope.gradients import supervised

SIZE = {"microbatch_size": 10, "progress": False}


class TwoLayers(nn.Module):
    """Scores a sample by two weight vectors, one for each half of its numbers."""

    def __init__(self, width):
        super().__init__()
        self.left = nn.Linear(width, 1, bias=False)
        self.right = nn.Linear(width, 1, bias=False)

    def forward(self, rows):
        left, right = rows.chunk(2, dim=1)
        return (self.left(left) + self.right(right)).squeeze(1)


def loss(model, rows):
    return model(rows)


def rows_of(n, signal, noise=1.0, width=100, seed=0):
    """Gradients with a common part on the left half only: |mu|^2 = signal, tr Sigma = 2 width."""
    rows = noise * torch.randn(n, 2 * width, generator=torch.Generator().manual_seed(seed))
    rows[:, 0] += math.sqrt(signal)
    return rows


@pytest.fixture(scope="module")
def known():
    # B_simple = 200 / 4 = 50 samples.
    return diagnose(TwoLayers(100), loss, rows_of(1000, 4.0), **SIZE, microbatches=2)


def test_numbers_contain_the_truth(known):
    noise = known.estimates["noise_scale"]
    assert noise.low < 50 < noise.high
    assert noise.high - noise.low < 30
    distance = known.estimates["mean_distance"]
    assert distance.low < 1 - 1 / (1 + 50 / 10) < distance.high
    dimension = known.estimates["effective_dimension"]
    assert dimension.low < 200 < dimension.high
    assert known.calibration.low < 1 - 1.645 / math.sqrt(200) < known.calibration.high


def test_the_layer_without_a_common_part_disagrees_most(known):
    assert known.layers["layer"].tolist() == ["right.weight", "left.weight"]
    right, left = known.layers.to_dict("records")
    assert right["distance_low"] < 1 < right["distance_high"]
    assert left["distance_high"] < 0.8
    assert left["share"] + right["share"] == pytest.approx(1)
    assert "right.weight" in known.answers["Which layers disagree?"]
    assert "1 of 2 layers" in known.answers["Which layers disagree?"]


def test_agreement_is_measured_at_several_sizes(known):
    measured = known.measured
    assert measured["u"].tolist() == [2, 5, 10, 20, 40]
    assert measured["rows"].tolist() == [64, 64, 64, 50, 25]
    np.testing.assert_allclose(measured["cosine"], 1 / (1 + 50 / measured["u"]), atol=0.03)
    np.testing.assert_allclose(measured["cosine"], measured["predicted"], atol=0.04)


def test_the_answers_say_so(known):
    answers = known.answers
    assert answers["Do the gradients agree?"].startswith("Yes, clearly")
    assert "20 samples an update" in answers["Is the batch too small or too large?"]
    assert "too small" in answers["Is the batch too small or too large?"]
    assert "not available" in answers["Which threshold?"]
    assert "Does the ranking find flipped labels?" not in answers


@pytest.mark.parametrize(("k", "word"), [(5, "about right"), (20, "larger than needed")])
def test_the_batch_is_held_against_the_noise_scale(known, k, word):
    found = diagnose(TwoLayers(100), loss, rows_of(1000, 4.0), **SIZE, microbatches=k)
    assert word in found.answers["Is the batch too small or too large?"]


def test_pure_noise_is_refused_not_guessed():
    found = diagnose(TwoLayers(100), loss, rows_of(640, 0.0), **SIZE)
    assert math.isnan(found.estimates["noise_scale"].value)
    assert found.measured["predicted"].isna().all()
    assert found.answers["Do the gradients agree?"].startswith("No, they cannot be told")
    batch = found.answers["Is the batch too small or too large?"]
    assert "cannot be known" in batch
    assert "too small" in batch
    assert "No prediction" in found.answers["How does agreement grow with the microbatch size?"]


def test_a_fitted_data_set_opposes_itself_a_little():
    rows = rows_of(200, 0.0)
    found = diagnose(TwoLayers(100), loss, rows - rows.mean(0), **SIZE)
    assert found.estimates["mean_distance"].low > 1
    assert "gradient of the whole is near zero" in found.answers["Do the gradients agree?"]
    assert "nothing but noise" in found.answers["Is the batch too small or too large?"]


def noisy_labels():
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(240) % 3
    inputs = 2 * torch.eye(8)[true] + torch.randn(240, 8, generator=generator)
    wrong = torch.rand(240, generator=generator) < 0.3
    given = torch.where(wrong, (true + 1 + torch.arange(240) // 3 % 2) % 3, true)
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    return model, supervised(nn.functional.cross_entropy), (inputs, given), true


@pytest.fixture(scope="module")
def labelled():
    model, criterion, data, true = noisy_labels()
    return diagnose(model, criterion, data, **SIZE, true_targets=true)


def test_true_labels_bring_purity_and_auroc(labelled):
    found, (_, _, data, true) = labelled, noisy_labels()
    assert found.purity["level"].unique().tolist() == ["microbatches of 10", "single samples"]
    flipped = (data[1] != true).double().mean().item()
    assert found.purity.loc[3, "flipped_all"] == pytest.approx(flipped, abs=0.03)
    single = found.purity.iloc[3]
    assert single["flipped_accepted"] < single["flipped_rejected"]
    assert found.separation["score"].tolist()[-1] == "loss"
    assert "AUROC" in found.answers["Does the ranking find flipped labels?"]
    assert "Single samples" in found.answers["Does the rule keep flipped samples out?"]


def test_everything_is_in_the_summary_and_in_plain_values(known, labelled):
    found = labelled
    text = json.dumps(found.as_dict(top=3), allow_nan=False)
    assert len(json.loads(text)["samples_that_disagree_most"]) == 3
    assert json.loads(text)["estimates"]["noise_scale"]["low"] is not None
    summary = found.summary
    parts = ["model", "calibration", "layer", "curve", "ranking", "purity"]
    assert summary["part"].unique().tolist() == parts
    row = summary[(summary["name"] == "loss") & (summary["quantity"] == "auroc")].iloc[0]
    last = found.separation.iloc[-1]
    assert (row["value"], row["low"], row["high"], row["n"]) == (
        *last[["auroc", "auroc_low", "auroc_high"]],
        240,
    )
    assert known.summary["part"].unique().tolist() == parts[:4]
    json.dumps(known.as_dict(), allow_nan=False)


def test_it_shows_itself(known):
    assert "Do the gradients agree?" in repr(known)
    page = known._repr_html_()
    assert page.startswith("<table>")
    assert "Is the batch too small" in page


def test_samples_that_depend_on_each_other_are_left_out():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(8, track_running_stats=False)
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.norm(x))

    _, criterion, data, true = noisy_labels()
    found = diagnose(
        Normed(), criterion, data, microbatch_size=20, progress=False, true_targets=true
    )
    assert found.ranking is None
    assert any("No ranking" in note and "BatchNorm" in note for note in found.notes)
    assert "Which samples disagree most?" not in found.answers
    assert len(found.purity) == 3


def test_the_seed_decides_everything():
    model, criterion, data, _ = noisy_labels()
    one, two, other = (
        diagnose(model, criterion, data, **SIZE, samples=60, seed=seed).as_dict()
        for seed in (0, 0, 1)
    )
    assert one == two
    assert one != other


def test_mistakes_are_explained():
    model, criterion, (inputs, given), true = noisy_labels()
    data = inputs, given
    with pytest.raises(UserError, match="at least 1, but is 0"):
        diagnose(model, criterion, data, **SIZE, microbatches=0)
    with pytest.raises(UserError, match="240 samples make 2 of microbatch_size=100"):
        diagnose(model, criterion, data, microbatch_size=100)
    with pytest.raises(UserError, match="one label for each of the 240"):
        diagnose(model, criterion, data, **SIZE, true_targets=true[:5])
    with pytest.raises(UserError, match="false_accept"):
        diagnose(model, criterion, data, **SIZE, false_accept=0.7)
    with pytest.raises(UserError, match="at least 3"):
        diagnose(model, criterion, data, **SIZE, samples=1)
