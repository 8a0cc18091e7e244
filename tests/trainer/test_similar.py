"""Microbatches of similar samples: groups by the activations of a briefly trained network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from gafscope.data import Split
from gafscope.errors import UserError
from gafscope.models import build_model
from gafscope.trainer import TrainSettings
from gafscope.trainer.job import assemble
from gafscope.trainer.similar import last_activations, similar_groups

QUICK = TrainSettings(
    model_options={"hidden": "16"}, microbatch_size=10, threads=1, progress=False, balance="similar"
)


def split_of(inputs: torch.Tensor) -> Split:
    labels = torch.zeros(len(inputs), dtype=torch.int64)
    return Split(inputs, labels, labels)


def test_groups_are_cut_at_medians_along_the_widest_direction():
    # Far apart along the first axis, less so along the second.
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.0, 0], [0, 3], [10, 0], [10, 3]]).repeat(5, 1)
    inputs = corners + 0.1 * torch.randn(20, 2, generator=generator)
    groups = similar_groups(nn.Linear(2, 2), split_of(inputs), smallest=5)
    assert torch.bincount(groups).tolist() == [5] * 4
    for corner in range(4):
        assert len(groups[corner::4].unique()) == 1
    halves = similar_groups(nn.Linear(2, 2), split_of(inputs), smallest=6)
    assert torch.bincount(halves).tolist() == [10, 10]
    assert torch.equal(halves[0::4], halves[1::4])


def test_sizes_differ_by_one_at_most():
    inputs = torch.randn(103, 3, generator=torch.Generator().manual_seed(0))
    groups = similar_groups(nn.Linear(3, 2), split_of(inputs), smallest=10)
    assert sorted(torch.bincount(groups).tolist()) == [12] + [13] * 7


def test_activations_are_what_the_last_dense_layer_reads():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    inputs = torch.randn(2100, 3)
    found = last_activations(model, split_of(inputs))
    expected = model[0](inputs).clamp(min=0).double()
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-6)
    assert model.training
    assert not model[-1]._forward_pre_hooks


def test_tokens_count_by_the_mean_over_their_positions():
    model = build_model("gpt", input_shape=(6,), num_classes=9, dim=8, depth=1, heads=2, seed=0)
    tokens = torch.randint(9, (5, 6))
    found = last_activations(model, Split(tokens, tokens, tokens))
    expected = model.norm(model.blocks(model.tokens(tokens) + model.positions(torch.arange(6))))
    torch.testing.assert_close(found, expected.mean(1).double().detach(), atol=1e-6, rtol=1e-6)


def test_microbatches_hold_samples_of_one_group():
    job = assemble(QUICK, None)
    before = [parameter.detach().clone() for parameter in job.trainer.model.parameters()]
    again = assemble(QUICK, None)
    own, theirs = (list(job.trainer.model.parameters()) for job in (job, again))
    assert all(map(torch.equal, before, own))
    assert all(map(torch.equal, own, theirs))
    fresh = assemble(replace(QUICK, balance="iid"), None).trainer.model
    assert all(map(torch.equal, own, fresh.parameters()))
    inputs, _ = next(job.batches)
    assert torch.equal(inputs, next(again.batches)[0])
    # Digits of a microbatch are closer to each other than to those of the other one.
    within, across = [], []
    for _ in range(20):
        one, two = next(job.batches)[0].flatten(1).split(10)
        within += [torch.pdist(one).mean(), torch.pdist(two).mean()]
        across.append(torch.cdist(one, two).mean())
    assert sum(within) / len(within) < 0.9 * sum(across) / len(across)


def test_too_few_samples_for_two_groups():
    with pytest.raises(UserError, match=r"at least 40 samples each .* there are 72"):
        assemble(replace(QUICK, subset=80), None)
