"""Attacks on networks whose accuracy under attack is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gafscope.analyses.attacks import FGSM, PGD, Pixels, accuracy_under

# So wide that clipping to it never matters, and epsilon 1 is 200.
WIDE = Pixels(torch.full((1, 1, 1), -100.0), torch.full((1, 1, 1), 100.0))


def images(n: int = 300) -> torch.Tensor:
    return torch.randn(n, 1, 3, 4, generator=torch.Generator().manual_seed(0))


def linear(classes: int = 2) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))


@pytest.mark.parametrize("epsilon", [0.0003, 0.0008, 0.0015])
def test_accuracy_of_a_linear_model_is_known_in_closed_form(epsilon):
    """An image stays right while its margin exceeds size * |w_right - w_wrong|_1.

    No attack can do better than FGSM there, and PGD with enough steps does as well.
    """
    model, inputs = linear(), images()
    targets = torch.arange(len(inputs)) % 2
    weight = model[1].weight.detach()
    outputs = model(inputs).detach()
    rows = torch.arange(len(inputs))
    margins = outputs[rows, targets] - outputs[rows, 1 - targets]
    expected = (margins > 200 * epsilon * (weight[0] - weight[1]).abs().sum()).float().mean()
    assert 0 < expected < (margins > 0).float().mean()
    assert accuracy_under(FGSM(epsilon, WIDE), model, inputs, targets) == pytest.approx(expected)
    projected = PGD(epsilon, WIDE, steps=10, seed=0)
    assert accuracy_under(projected, model, inputs, targets) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["FGSM", "PGD"])
def test_no_pixel_leaves_the_ball_or_its_range(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 3))
    shape = (40, 2, 3, 4)
    # Two channels that are normalised differently.
    scale = torch.tensor([1.0, 3.0])[:, None, None]
    inputs = (torch.rand(shape, generator=torch.Generator().manual_seed(2)) - 0.3) * scale
    pixels, targets = Pixels.of(inputs), torch.arange(40) % 3
    attack = FGSM(0.1, pixels) if name == "FGSM" else PGD(0.1, pixels, steps=7, seed=3)
    moved = attack(model, inputs, targets) - inputs
    size = 0.1 * (pixels.high - pixels.low)
    assert size.flatten().tolist() == pytest.approx([0.1, 0.3], rel=0.05)
    assert bool((moved.abs() <= size * 1.00001).all())
    assert bool((moved.abs() > 0.5 * size).any((0, 2, 3)).all())
    attacked = inputs + moved
    assert bool((attacked >= pixels.low - 1e-6).all() and (attacked <= pixels.high + 1e-6).all())


def test_projected_descent_finds_more_than_one_step_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 3))
    inputs = images()
    targets = model(inputs).argmax(1)
    pixels = Pixels.of(inputs)
    fast = accuracy_under(FGSM(0.06, pixels), model, inputs, targets)
    slow = accuracy_under(PGD(0.06, pixels, steps=20, seed=0), model, inputs, targets)
    one = accuracy_under(PGD(0.06, pixels, steps=1, seed=0), model, inputs, targets)
    assert accuracy_under(None, model, inputs, targets) == 1
    assert 0 < slow <= fast < 1
    assert slow < one
    assert accuracy_under(PGD(0.8, pixels, steps=20, seed=0), model, inputs, targets) == 0


def test_the_start_depends_on_the_seed_alone():
    model, inputs, targets = linear(3), images(20), torch.arange(20) % 3
    pixels = Pixels.of(inputs)
    first, again, other = (PGD(0.3, pixels, 1, seed)(model, inputs, targets) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(8, 2))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    inputs, targets = images(10), torch.arange(10) % 2
    accuracy_under(PGD(0.1, Pixels.of(inputs), 2, 0), model, inputs, targets)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
