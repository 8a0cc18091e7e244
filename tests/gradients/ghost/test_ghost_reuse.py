"""What is remembered of a model must not outlive what it was true of."""

from __future__ import annotations

from typing import Any

import ghost_cases
import pytest
import torch
from ghost_cases import (
    assert_same,
    check,
    check_refused,
    check_right_or_refused,
    make,
    normal,
    waves,
)
from torch import Tensor, nn

from gafscope.gradients import gramian

D = 4


def layers() -> nn.Sequential:
    return make(lambda: nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)))


def measured(model: nn.Module, batch: Any) -> nn.Module:
    gramian(model, waves, batch, engine=ghost_cases.ENGINE)
    return model


def test_other_batches():
    model = layers()
    for shape in [(5, D), (D,), (2, D), (3, 5, D), (1, D)]:
        for n in (6, 2, 12, 3):
            check(model, normal(*shape)(n))


def test_a_layer_is_replaced():
    model = measured(layers(), normal(5, D)(6))
    model[0] = make(lambda: nn.Linear(D, D, bias=False))
    check(model, normal(5, D)(6))
    model[1] = make(lambda: nn.LayerNorm(D))
    check(model, normal(5, D)(6))
    model.append(make(lambda: nn.Conv1d(5, 3, 1)))
    check(model, normal(5, D)(6))
    del model[0]
    check(model, normal(5, D)(6))


def test_a_parameter_is_replaced_or_rewritten():
    model = measured(layers(), normal(D)(6))
    model[0].weight = nn.Parameter(torch.randn(D, D).double())
    check(model, normal(D)(6))
    with torch.no_grad():
        model[2].weight.mul_(3)
    model[2].bias.data = torch.randn(D).double()
    check(model, normal(D)(6))


def test_weights_become_tied_and_untied():
    model = measured(layers(), normal(D)(6))
    own = model[2].weight
    model[2].weight = model[0].weight
    check(model, normal(D)(6))
    model[2].weight = own
    check(model, normal(D)(6))


def test_parameters_are_frozen_and_thawed():
    model = measured(layers(), normal(5, D)(6))
    for name, p in model.named_parameters():
        p.requires_grad_(False)
        check(model, normal(5, D)(6))
        p.requires_grad_(True)
        check(model, normal(5, D)(6)), name


def test_another_type():
    model = measured(layers().float(), normal(5, D)(6).float())
    check(model.double(), normal(5, D)(6))
    check(model.float(), normal(5, D)(6).float(), tolerance=1e-5)


def test_training_mode_changes_what_the_model_does():
    class Modal(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            return (
                self.a(x).tanh()
                if self.training
                else self.b(self.a(x).transpose(0, -2)).sin().transpose(0, -2)
            )

    model = make(Modal)
    for mode in (True, False, True):
        check(model.train(mode), normal(5, D)(6))


def test_the_program_changes_with_an_attribute():
    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)
            self.swap = False

        def forward(self, x: Tensor) -> Tensor:
            if self.swap:
                return self.a(self.b(x).tanh()) * self.b.bias
            return self.b(self.a(x).tanh())

    model = make(Switch)
    for model.swap in (False, True, False):
        check(model, normal(5, D)(6))


def test_a_layout_that_changes_with_an_attribute():
    class Turn(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(D, D)
            self.time_first = False

        def forward(self, x: Tensor) -> Tensor:
            if self.time_first:
                return self.a(x.transpose(0, 1)).transpose(0, 1).tanh()
            return self.a(x).tanh()

    model = make(Turn)
    for model.time_first in (False, True, False):
        check(model, normal(6, D)(6))
        check(model, normal(5, D)(6))


def coupled(model: Any, x: Tensor) -> Tensor:
    losses = waves(model, x)
    return losses * losses.detach().mean()


def contrastive(model: Any, x: Tensor) -> Tensor:
    z = model(x)
    return (z @ z.T).logsumexp(1) - (z * z).sum(1)


@pytest.mark.parametrize("loss", [coupled, contrastive])
def test_another_loss_that_couples_samples_is_still_refused(loss):
    model, batch = layers(), normal(D)(6)
    check(model, batch)
    check_refused(model, batch, loss)
    check(model, batch)


def test_a_loss_that_starts_to_couple_samples():
    # One loss object whose settings change: what was found on the first use no longer holds.
    class Warming:
        share = 0.0

        def __call__(self, model: Any, x: Tensor) -> Tensor:
            losses = waves(model, x)
            return losses * (1 + self.share * losses.detach().mean())

    model, batch, loss = layers(), normal(D)(6), Warming()
    check(model, batch, loss)
    loss.share = 5.0
    check_refused(model, batch, loss)


def test_a_model_that_starts_to_couple_samples():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)
            self.share = 0.0

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).tanh()
            return self.b(h + self.share * h.mean(0))

    model, batch = make(Mixing), normal(D)(6)
    check(model, batch)
    model.share = 1.0
    check_refused(model, batch)


class Sorting(nn.Module):
    """Sorts the samples by their length before a layer, and back afterwards."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort(stable=True)
        return self.b(self.a(x[order]).tanh()[order.argsort()])


def test_samples_that_happen_to_be_in_order_on_first_use():
    model, batch = make(Sorting), normal(D)(6)
    ordered = batch[batch[:, 0].argsort()]
    check_right_or_refused(model, ordered)
    check_right_or_refused(model, batch)


class Routed(nn.Module):
    """Sends each sample to one of two layers, by mask."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, 3), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 3, dtype=x.dtype)
        first = x[:, 0] > 0
        out[first] = self.a(x[first])
        out[~first] = self.b(x[~first])
        return out


def test_samples_that_happen_to_take_one_route_on_first_use():
    model, batch = make(Routed), normal(D)(6)
    batch[:, 0] = batch[:, 0].abs()
    check_right_or_refused(model, batch)
    batch[1::2, 0] *= -1
    check_right_or_refused(model, batch)
    batch[0, 0] *= -1
    check_right_or_refused(model, batch)
    check_right_or_refused(model, batch.flip(0))


def test_a_layer_that_first_receives_no_gradient():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)
            self.gate = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.gate * self.b(x.flip(0)).flip(0)

    model, batch = make(Gated), normal(D)(6)
    nn.init.zeros_(model.gate)
    check_right_or_refused(model, batch)
    nn.init.ones_(model.gate)
    check_right_or_refused(model, batch)


def test_equal_samples_on_first_use():
    # Equal samples hide which sample is which.
    model, batch = make(Sorting), normal(D)(1).repeat(6, 1)
    check_right_or_refused(model, batch)
    check_right_or_refused(model, normal(D)(6))
    model, batch = layers(), normal(5, D)(1).repeat(6, 1, 1)
    expected = gramian(model, waves, batch, engine="loop")
    assert_same(gramian(model, waves, batch, engine=ghost_cases.ENGINE), expected)


def test_zeros_on_first_use():
    model = make(Sorting)
    check_right_or_refused(model, torch.zeros(6, D).double())
    check_right_or_refused(model, normal(D)(6))
    model = layers()
    check(model, torch.zeros(6, D).double())
    check(model, normal(D)(6))
