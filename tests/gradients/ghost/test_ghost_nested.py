"""Measurements inside measurements, and under somebody else's function mode."""

from __future__ import annotations

from typing import Any

import ghost_cases
import torch
from ghost_cases import assert_same, make, normal, waves
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from gafscope.errors import UserError
from gafscope.gradients import Gramian, gramian


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4).eval()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4 * 16, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.head(self.drop(self.norm(self.conv(x)).relu()).flatten(1))


def measure(model: nn.Module, batch: Any, loss: Any = waves, **options: Any) -> Gramian:
    return gramian(model, loss, batch, engine=ghost_cases.ENGINE, **options)


def test_a_measurement_inside_a_forward_hook():
    inner, outer, batch = make(Net).eval(), make(Net).eval(), normal(3, 6, 6)(6)
    expected = gramian(inner, waves, batch, engine="loop")
    found = []
    outer.conv.register_forward_hook(lambda *_: found.append(measure(inner, batch)) and None)
    assert_same(measure(outer, batch), expected)
    assert found
    for nested in found:
        assert_same(nested, expected)
    assert not inner._forward_hooks
    assert _get_current_function_mode_stack() == []


def test_a_measurement_inside_the_loss_of_another():
    inner, outer, batch = make(Net).eval(), make(Net).eval(), normal(3, 6, 6)(6)
    fixed = batch[:4].clone()
    expected = gramian(outer, waves, batch, engine="loop")
    inner_expected = gramian(inner, waves, fixed, engine="loop")

    def nesting(model: nn.Module, x: Tensor) -> Tensor:
        losses = waves(model, x)
        assert_same(measure(inner, fixed), inner_expected)
        return losses

    assert_same(measure(outer, batch, nesting), expected)


def test_a_measurement_of_the_same_model_inside_its_loss():
    model, batch = make(Net).eval(), normal(3, 6, 6)(6)
    fixed = batch[:4].clone()
    expected = gramian(model, waves, batch, engine="loop")
    inner_expected = gramian(model, waves, fixed, engine="loop")

    def nesting(model: nn.Module, x: Tensor) -> Tensor:
        assert_same(measure(model, fixed), inner_expected)
        return waves(model, x)

    try:
        found = measure(model, batch, nesting)
    except UserError:
        return
    assert_same(found, expected)


def test_another_function_mode_is_still_there():
    class Counting(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    model, batch = make(Net).eval(), normal(3, 6, 6)(6)
    expected = gramian(model, waves, batch, engine="loop")
    with Counting() as mode:
        assert_same(measure(model, batch), expected)
        assert _get_current_function_mode_stack() == [mode]
    assert mode.calls
