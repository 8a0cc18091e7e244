"""The measured networks: sizes as the tables say, batches that they take, reproducible."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gafscope.analyses.cost_cases import case_names, default_width, make_case

PARAMETERS = {
    "resnet18": (11.0e6, 11.5e6),
    "vit": (1.0e6, 2.0e6),
    "gpt": (2.8e6, 3.5e6),
    "cnn": (94_000, 96_000),
    "mlp": (4.0e5, 4.2e5),
}


@pytest.mark.parametrize("name", case_names())
def test_size_and_loss(name):
    case = make_case(name, 3)
    low, high = PARAMETERS[name]
    assert low < sum(p.numel() for p in case.parameters) < high
    assert case.n == 3
    assert case.loss(case.model, case.batch).shape == (3,)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in case.model.modules())
    assert [len(part) for part in case.first(2)] == [2, 2]


def test_targets_of_a_language_model_are_the_next_tokens():
    inputs, targets = make_case("gpt", 2).batch
    assert inputs.shape == (2, 64)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("name", case_names())
def test_width_grows_the_parameters(name):
    def count(width: int) -> int:
        return sum(p.numel() for p in make_case(name, 1, width=width).parameters)

    width = default_width(name)
    assert count(width // 2) < count(width) / 1.8


def test_the_seed_decides_and_the_random_state_stays():
    state = torch.get_rng_state()
    one, two, other = (make_case("cnn", 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.batch[0], two.batch[0])
    assert torch.equal(one.parameters[0], two.parameters[0])
    assert not torch.equal(one.batch[0], other.batch[0])
    assert not torch.equal(one.parameters[0], other.parameters[0])
