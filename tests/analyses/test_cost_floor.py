"""The floor by FLOP count, against counts by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gafscope.analyses.cost_cases import Case, make_case
from gafscope.analyses.cost_floor import Layer, flop_floor
from gafscope.gradients import supervised


def test_an_mlp_by_hand():
    n = 8
    sizes = [(3072, 128), (128, 128), (128, 10)]
    forward = n * sum(a * b for a, b in sizes)
    inputs = n * sum(a * b for a, b in sizes[1:])  # not for the first layer
    # Linear layers with one position: the ghost form is always cheaper than the rows here.
    ghost = sum(n * n * (a + b + 1) / 2 for a, b in sizes)
    floor = flop_floor(make_case("mlp", n), n)
    assert floor.gramian == pytest.approx((forward + inputs + ghost) / (2 * forward + inputs))
    assert floor.step == pytest.approx((2 * forward + inputs + ghost) / (2 * forward + inputs))


def test_attention_counts():
    """Twice the plain cost of the fused kernel's products lowers the Gramian's share."""
    n, tokens, dim = 4, 64, 256
    case = make_case("gpt", n)
    linear = [(dim, 3 * dim), (dim, dim), (dim, 4 * dim), (4 * dim, dim)] * 4 + [(dim, 256)]
    weights = n * tokens * sum(a * b for a, b in linear)
    # Per block: q k^T and its product with v, forward once and backward twice.
    attention = 4 * 3 * n * 2 * tokens**2 * dim
    ghost = sum(
        min(n**2 * tokens**2 * (a + b + 1) / 2, n * tokens * a * b + n**2 * a * b / 2)
        for a, b in linear
    )
    plain = 3 * weights + attention
    assert flop_floor(case, n).gramian == pytest.approx((plain - weights + ghost) / plain)


def test_the_cheapest_form_of_a_convolution():
    n = 64
    late = Layer(t=16, d_in=9 * 512, d_out=512, pixels=16, c_in=512)
    assert late.gramian(n, n) == n**2 * 16**2 * (512 + 512 + 9) / 2
    assert late.gramian_and_update(n, n) == late.gramian(n, n) + late.weight_gradient(n)
    early = Layer(t=1024, d_in=9 * 64, d_out=64, pixels=1024, c_in=64)
    rows = n * 1024 * 9 * 64 * 64
    assert early.gramian(n, n) == rows + n**2 * 9 * 64 * 64 / 2
    # The rows are there, and their weighted sum is cheaper than another weight gradient.
    assert early.gramian_and_update(n, n) == early.gramian(n, n) + n * 9 * 64 * 64


def test_microbatches_cost_less_than_samples():
    case = make_case("cnn", 16)
    costs = [flop_floor(case, k).gramian for k in (2, 4, 16)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_a_strided_convolution_has_no_shifted_form():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.Flatten())
    batch = torch.randn(2, 4, 8, 8), torch.zeros(2, dtype=torch.long)
    case = Case(model, supervised(nn.functional.cross_entropy), batch)
    n, t, d_in, d_out = 2, 16, 36, 8
    ghost = n**2 * t**2 * (d_in + d_out + 1) / 2
    rows = n * t * d_in * d_out + n**2 * d_in * d_out / 2
    weights = n * t * d_in * d_out
    # The first layer has no input gradient.
    expected = (weights + min(ghost, rows)) / (2 * weights)
    assert flop_floor(case, n).gramian == pytest.approx(expected)


def test_the_model_is_left_as_it_was():
    case = make_case("cnn", 2)
    before = copy.deepcopy(case.model.state_dict())
    flop_floor(case, 2)
    assert all(p.grad is None for p in case.parameters)
    assert not any(module._forward_hooks for module in case.model.modules())
    for name, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, before[name])
