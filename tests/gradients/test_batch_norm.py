"""Running statistics end where PyTorch's own forwards of the chosen microbatches leave them."""

from __future__ import annotations

import copy
from itertools import chain, combinations

import pytest
import torch
from batch_norm_reference import MODELS, assert_statistics, buffers, images, native
from torch import Tensor, nn

from gafscope.gradients.batch_norm import RunningStatistics

K = 4
SUBSETS = list(chain.from_iterable(combinations(range(K), size) for size in range(K + 1)))


def forward(model: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        model(inputs)


@pytest.mark.parametrize("name", MODELS)
def test_only_chosen_microbatches_move_them(name):
    """All 16 subsets, one macrobatch after the other."""
    model = MODELS[name]()
    statistics = RunningStatistics(model)
    for batch, chosen in zip(images(len(SUBSETS), K), SUBSETS, strict=True):
        before = copy.deepcopy(model)
        statistics.begin()
        for part in batch[0].chunk(K):
            forward(model, part)
            statistics.collect(finite=True)
        statistics.commit(chosen)
        assert_statistics(buffers(model), native(before, batch, K, chosen))
        if not chosen:
            found = zip(buffers(model).values(), buffers(before).values(), strict=True)
            assert all(torch.equal(a, b) for a, b in found)


@pytest.mark.parametrize("bad", range(3))
def test_a_microbatch_that_is_not_finite_leaves_nothing_behind(bad):
    model, (batch,) = MODELS["batch norm"](), images(1, 3)
    good = [i for i in range(3) if i != bad]
    expected = native(model, batch, 3, good)
    statistics = RunningStatistics(model)
    statistics.begin()
    for i, part in enumerate(batch[0].chunk(3)):
        forward(model, part * torch.nan if i == bad else part)
        statistics.collect(finite=i != bad)
    assert_statistics(buffers(model), expected)
    statistics.commit(good)
    assert_statistics(buffers(model), expected)


@pytest.mark.parametrize("chosen", [(), (0,), (0, 1)])
def test_restart_forgets_earlier_microbatches_but_not_a_forward_since(chosen):
    """What came before stays moved; the forward that has begun belongs to the new macrobatch."""
    model, (batch,) = MODELS["batch norm"](), images(1, K)
    parts = batch[0].chunk(K)
    expected = native(model, batch, K, [0, 1, *(2 + i for i in chosen)])
    statistics = RunningStatistics(model)
    statistics.begin()
    for part in parts[:2]:
        forward(model, part)
        statistics.collect(finite=True)
    forward(model, parts[2])
    statistics.restart()
    statistics.collect(finite=True)
    forward(model, parts[3])
    statistics.collect(finite=True)
    statistics.commit(chosen)
    assert_statistics(buffers(model), expected)
