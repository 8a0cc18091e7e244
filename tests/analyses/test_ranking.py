import copy

import numpy as np
import pytest
import torch
from torch import nn

from gafscope.analyses.ranking import rank_samples
from gafscope.errors import UserError
from gafscope.gradients import supervised

CROSS_ENTROPY = supervised(nn.functional.cross_entropy)


def noisy_clusters(n=90, seed=0):
    """Three well separated clusters, a fifth of the labels wrong, and a model that learnt them."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.arange(n) % 3
    inputs = 3 * torch.eye(6)[true] + torch.randn(n, 6, generator=generator)
    wrong = torch.rand(n, generator=generator) < 0.2
    given = torch.where(wrong, (true + 1 + torch.arange(n) // 3 % 2) % 3, true)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(30):
        optimizer.zero_grad()
        CROSS_ENTROPY(model, (inputs, given)).mean().backward()
        optimizer.step()
    return model, (inputs, given), true


def rows_one_by_one(model, data):
    """Each sample's gradient by its own backward, in float64."""
    model = copy.deepcopy(model).double()
    rows, losses = [], []
    for x, y in zip(*data, strict=True):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x.double()[None]), y[None])
        loss.backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        losses.append(loss.item())
    return torch.stack(rows).numpy(), losses


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_scores_match_gradients_taken_one_by_one():
    model, data, _ = noisy_clusters(24)
    table = rank_samples(model, CROSS_ENTROPY, data).table.set_index("sample").sort_index()
    rows, losses = rows_one_by_one(model, data)
    labels = data[1].numpy()
    for i, row in enumerate(rows):
        others = [j for j in range(24) if j != i]
        alike = [j for j in others if labels[j] == labels[i]]
        expected = {
            "class_distance": np.mean([1 - cosine(row, rows[j]) for j in alike]),
            "mean_distance": np.mean([1 - cosine(row, rows[j]) for j in others]),
            "distance_to_sum": 1 - cosine(row, rows[others].sum(0)),
            "gradient_norm": np.linalg.norm(row),
            "loss": losses[i],
        }
        found = table.loc[i, list(expected)].to_dict()
        assert found == pytest.approx(expected, abs=2e-5)


def test_flipped_labels_come_first():
    model, data, true = noisy_clusters()
    ranking = rank_samples(model, CROSS_ENTROPY, data, true_targets=true)
    table = ranking.table
    assert ranking.ranked_by == "class_distance"
    assert table["rank"].tolist() == list(range(1, 91))
    assert table["class_distance"].is_monotonic_decreasing
    assert table["flipped"].tolist() == (table["label"] != table["true_label"]).tolist()
    assert table["flipped"].head(8).mean() > 0.8
    separation = ranking.separation().set_index("score")
    assert separation.loc["class_distance", "auroc"] > 0.9
    assert separation.index[-1] == "loss"


def test_without_labels_the_distance_to_all_others_decides():
    model = nn.Linear(4, 1)
    data = {"x": torch.randn(20, 4, generator=torch.Generator().manual_seed(0))}
    ranking = rank_samples(model, lambda m, b: m(b["x"]).squeeze(1) ** 2, data)
    assert ranking.ranked_by == "mean_distance"
    assert "label" not in ranking.table
    assert ranking.separation() is None


def test_a_loss_that_averages_gives_the_same_ranking():
    model, data, _ = noisy_clusters(30)
    each = rank_samples(model, CROSS_ENTROPY, data).table
    mean = rank_samples(model, lambda m, b: CROSS_ENTROPY(m, b).mean(), data).table
    np.testing.assert_allclose(mean.drop(columns="rank"), each.drop(columns="rank"), atol=2e-5)


def test_batch_norm_is_frozen_for_single_samples_and_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    data = noisy_clusters(30)[1]
    before = copy.deepcopy(model.state_dict())
    ranking = rank_samples(model, CROSS_ENTROPY, data)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert any("BatchNorm" in note for note in ranking.notes)
    frozen = rank_samples(copy.deepcopy(model).eval(), CROSS_ENTROPY, data)
    assert ranking.table.equals(frozen.table)


def test_a_sample_that_is_not_finite_comes_last():
    model, (inputs, given), _ = noisy_clusters(30)
    inputs[4, 0] = torch.nan
    ranking = rank_samples(model, CROSS_ENTROPY, (inputs, given))
    last = ranking.table.iloc[-1]
    assert last["sample"] == 4
    assert np.isnan(last["class_distance"])
    assert ranking.table["mean_distance"].notna().sum() == 29
    assert any("1 samples" in note and "finite" in note for note in ranking.notes)


def test_a_part_of_the_samples():
    model, data, true = noisy_clusters()
    one, two = (
        rank_samples(model, CROSS_ENTROPY, data, true_targets=true, samples=40, seed=seed)
        for seed in (0, 1)
    )
    assert len(one.table) == len(one.indices) == one.gramian.k == 40
    assert one.table["sample"].nunique() == 40
    assert set(one.table["sample"]) != set(two.table["sample"])
    assert (true[one.table["sample"].tolist()].numpy() == one.table["true_label"]).all()
    assert any("40 of 90" in note for note in one.notes)


def test_mistakes_are_explained():
    model, (inputs, given), true = noisy_clusters(12)
    with pytest.raises(UserError, match="at least 3"):
        rank_samples(model, CROSS_ENTROPY, (inputs, given), samples=2)
    with pytest.raises(UserError, match=r"shape \(12,\), but got \(11,\)"):
        rank_samples(model, CROSS_ENTROPY, (inputs, given), true_targets=true[1:])
    with pytest.raises(UserError, match="must be a pair"):
        rank_samples(model, CROSS_ENTROPY, (inputs, given.double()), true_targets=true)
