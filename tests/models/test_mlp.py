from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gafscope.errors import UserError
from gafscope.models import mlp


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_layers_have_the_sizes_asked_for():
    model = mlp(12, hidden=(7, 5), num_classes=3)
    assert [tuple(layer.weight.shape) for layer in linears(model)] == [(7, 12), (5, 7), (3, 5)]
    assert sum(p.numel() for p in model.parameters()) == 12 * 7 + 7 + 7 * 5 + 5 + 5 * 3 + 3


def test_inputs_are_flattened_from_dimension_1():
    model = mlp(12, num_classes=3)
    images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images), model(images.reshape(4, 12)))


def test_without_hidden_layers_it_is_linear():
    model = mlp(6, hidden=(), num_classes=2)
    a, b = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(a + b), model(a) + model(b))


def test_it_is_the_textbook_formula():
    model = mlp(6, hidden=(5,), num_classes=2)
    first, last = linears(model)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ last.weight.T + last.bias)


def test_weights_are_normal_with_variance_two_over_fan_in_and_biases_zero():
    for layer in linears(mlp(800, hidden=(400,), num_classes=200)):
        scale = math.sqrt(2 / layer.in_features)
        assert layer.weight.std().item() == pytest.approx(scale, rel=0.02)
        # A uniform distribution of this variance ends at 1.73 standard deviations.
        assert layer.weight.abs().max().item() > 3 * scale
        assert not layer.bias.any()


def test_dropout_acts_in_training_mode_only():
    model = mlp(6, hidden=(64,), dropout=0.5)
    x = torch.ones(2, 6)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(("norm", "dim"), [("batch", 0), ("layer", 1)])
def test_a_norm_standardises_what_enters_each_relu(norm, dim):
    model = mlp(6, hidden=(32,), norm=norm)
    seen = []
    relu = next(module for module in model.modules() if isinstance(module, nn.ReLU))
    relu.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.randn(16, 6, generator=torch.Generator().manual_seed(0)))
    assert seen[0].mean(dim).abs().max() < 1e-5
    torch.testing.assert_close(
        seen[0].var(dim, correction=0), torch.ones(seen[0].shape[1 - dim]), rtol=0.01, atol=0.01
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "in_features must be"),
        ({"in_features": 4, "hidden": (8, -1)}, r"hidden\[1\] must be .* -1"),
        ({"in_features": 4, "num_classes": 2.5}, "num_classes must be .* 2.5"),
        ({"in_features": 4, "dropout": 1.0}, "dropout must lie"),
        ({"in_features": 4, "norm": "bach"}, "Unknown norm 'bach'. Did you mean 'batch'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        mlp(**arguments)
