from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gafscope.errors import UserError
from gafscope.models import cnn


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_it_has_about_100k_parameters_for_cifar():
    assert parameters(cnn(3, 10)) == 94_538


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 17), (64, 32)])
def test_any_image_size_from_8_by_8_works(size):
    assert cnn(2, 7, width=4)(torch.zeros(3, 2, *size)).shape == (3, 7)


def test_width_scales_the_channels():
    heads = [cnn(width=width).head.in_features for width in (4, 8)]
    assert heads == [16, 32]


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)])
def test_a_norm_follows_each_convolution_and_takes_its_bias(norm, kind):
    model = cnn(width=8, norm=norm)
    assert sum(isinstance(module, kind) for module in model.modules()) == 3
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.bias is None for module in convolutions)


def test_group_norm_makes_the_logits_blind_to_the_scale_of_the_image():
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    normed, plain = cnn(width=8, norm="group"), cnn(width=8)
    torch.testing.assert_close(normed(100 * images), normed(1000 * images), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain(100 * images), plain(1000 * images), rtol=0.5)


def test_weights_are_normal_with_variance_two_over_fan_in_and_biases_zero():
    model = cnn(3, 100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            scale = math.sqrt(2 / module.weight[0].numel())
            assert module.weight.std().item() == pytest.approx(scale, rel=0.1)
            assert module.bias is not None
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be"),
        ({"width": -3}, "width must be .* -3"),
        ({"norm": "layer"}, "Unknown norm 'layer'.*batch, group"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        cnn(**arguments)
