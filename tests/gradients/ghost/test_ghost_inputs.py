"""Layouts, kinds of batches and of losses, and sizes that coincide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ghost_cases import check, check_right_or_refused, make, normal, tokens, waves
from torch import Tensor, nn

from gafscope.gradients import supervised

D = 4


class Layout(nn.Module):
    """Two layers, a norm, and positions over tokens in an unusual layout."""

    def __init__(self, enter: Callable[[Tensor], Tensor], leave: Callable[..., Tensor]):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(D, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.enter, self.leave = enter, leave

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.norm(self.a(self.enter(x))).tanh())
        return self.leave(h, x)


LAYOUTS: dict[str, Callable[[], nn.Module]] = {
    "as it is": lambda: Layout(lambda x: x, lambda h, x: h),
    "time first": lambda: Layout(lambda x: x.transpose(0, 1), lambda h, x: h.transpose(0, 1)),
    "time first, contiguous": lambda: Layout(
        lambda x: x.transpose(0, 1).contiguous(), lambda h, x: h.transpose(0, 1)
    ),
    "flat, sample by sample": lambda: Layout(
        lambda x: x.reshape(-1, D), lambda h, x: h.view(*x.shape[:2], 3)
    ),
    "flat, time by time": lambda: Layout(
        lambda x: x.transpose(0, 1).reshape(-1, D),
        lambda h, x: h.view(x.shape[1], x.shape[0], 3).transpose(0, 1),
    ),
    "split in two": lambda: Layout(lambda x: x.unflatten(1, (-1, 1)), lambda h, x: h.flatten(1, 2)),
    "leading one": lambda: Layout(lambda x: x[None], lambda h, x: h[0]),
    "sample dimension in the middle": lambda: Layout(
        lambda x: x.transpose(0, 1)[None], lambda h, x: h[0].transpose(0, 1)
    ),
    "not contiguous": lambda: Layout(lambda x: torch.stack([x, x + 1], -1)[..., 0], lambda h, x: h),
    "expanded": lambda: Layout(lambda x: x[:, :1].expand(-1, 3, -1), lambda h, x: h),
    "time reversed": lambda: Layout(lambda x: x.flip(1), lambda h, x: h),
}


@pytest.mark.parametrize(("n", "t"), [(6, 5), (2, 2), (3, 3), (1, 1)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_and_coinciding_sizes(name, n, t):
    check(make(LAYOUTS[name]), normal(t, D)(n))


@pytest.mark.parametrize("n", [1, 2, 3, D])
def test_square_images_as_large_as_the_batch(n):
    model = make(
        lambda: nn.Sequential(nn.Conv2d(n, n, 3, padding=1), nn.Tanh(), nn.Conv2d(n, n, 1))
    )
    check(model, normal(n, n, n)(n))
    model = make(lambda: nn.Sequential(nn.Linear(n, n), nn.LayerNorm(n), nn.Linear(n, n)))
    check(model, normal(n)(n))
    check(model, normal(n, n)(n))


class Pixels(nn.Module):
    def __init__(self, layout: torch.memory_format = torch.contiguous_format):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, stride=2),
            nn.LeakyReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.contiguous(memory_format=self.layout))


def test_channels_last():
    check(make(lambda: Pixels(torch.channels_last)), normal(3, 6, 7)(6))
    model = make(Pixels).to(memory_format=torch.channels_last)
    check(model, normal(3, 6, 7)(6).to(memory_format=torch.channels_last))


def test_batches_that_are_views():
    model = make(Pixels)
    check(model, normal(6, 7, 3)(6).permute(0, 3, 1, 2))
    check(model, normal(3, 6, 7)(1).expand(6, -1, -1, -1))
    check(model, normal(6, 6, 7)(6)[:, ::2])
    check(model, normal(3, 6, 7)(12)[::2])


class InPlace(nn.Module):
    """Writes into the outputs of its layers, also with a parameter."""

    def __init__(self, trained: bool = False):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.scale = nn.Parameter(torch.ones(D), requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += x
        y.relu_()
        z = self.b(y)
        z[:, 0] = 0
        z[:, 1] *= 3
        z = z.mul_(self.scale).add_(y)
        z.clamp_(-2, 2)
        out = torch.zeros_like(z)
        out[:, :2] = self.c(z)[:, :2]
        out[:, 2:].copy_(z[:, 2:])
        return out


def test_outputs_written_in_place():
    check(make(InPlace), normal(5, D)(6))
    check(make(InPlace), normal(3, D)(3))
    check_right_or_refused(make(lambda: InPlace(True)), normal(5, D)(6))


class Mixed(nn.Module):
    """Numbers, tokens and a mask in a nested batch."""

    def __init__(self):
        super().__init__()
        self.words, self.numbers = nn.Embedding(9, 5), nn.Linear(3, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, batch: Any) -> Tensor:
        words = self.words(batch["text"][0]) * batch["text"][1][..., None]
        return self.head((words.sum(1) + self.numbers(batch["numbers"])).tanh())


def test_nested_batches_of_several_types():
    batch = {
        "text": [tokens(9, 5)(6), tokens(2, 5)(6).bool()],
        "numbers": normal(3)(6),
        "unused": tokens(3)(6).to(torch.int8),
    }
    check(make(Mixed), batch)
    check(make(Mixed), (batch,), lambda model, batch: waves(model, batch[0]))


def test_unsigned_bytes():
    model = make(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    batch = tokens(255, 3, 2, 2)(6).to(torch.uint8)
    check(model, batch, lambda model, x: waves(model, x.double() / 255))


@dataclass
class Scaled:
    """A loss that cannot be hashed."""

    scale: float

    def __call__(self, model: Any, batch: Any) -> Tensor:
        return self.scale * F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Bound:
    """A loss that is a method, made anew whenever it is looked up."""

    def loss(self, model: Any, batch: Any) -> Tensor:
        return model(batch[0]).square().sum(1)


LOSSES: dict[str, Callable[[Any, Any], Tensor]] = {
    "cross entropy": supervised(F.cross_entropy),
    "module": supervised(nn.CrossEntropyLoss(label_smoothing=0.1)),
    "class weights": supervised(nn.NLLLoss(weight=torch.tensor([1.0, 2, 3, 4]).double())),
    "by hand": lambda m, b: -m(b[0]).log_softmax(-1).gather(1, b[1][:, None]).squeeze(1),
    "from another function": lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"),
    "two forwards": lambda m, b: (m(b[0]) - m(b[0] + 0.1)).square().mean(1),
    "through a submodule": lambda m, b: m[2](m[0](b[0]).sin()).sum(1),
    "weight decay on outputs": lambda m, b: m(b[0]).square().sum(1) + m[0](b[0]).abs().sum(1),
    "consistency with a detached target": lambda m, b: F.mse_loss(
        m(b[0]), m(b[0] * 2).detach(), reduction="none"
    ).mean(1),
    "kept to a list": lambda m, b: torch.stack(list(m(b[0]).square().sum(1))),
    "hinge": lambda m, b: (1 - m(b[0])[:, 0]).clamp(min=0),
    "unhashable": Scaled(2.0),
    "a method": Bound().loss,
    "selected": lambda m, b: m(b[0])[torch.arange(len(b[0])), b[1]].exp(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    model = make(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, D)))
    batch = (normal(5)(6), tokens(D)(6))
    if name == "kept to a list":
        check_right_or_refused(model, batch, LOSSES[name])
    else:
        check(model, batch, LOSSES[name])


@pytest.mark.parametrize("loss", [supervised(F.cross_entropy), "by hand"])
def test_ignored_tokens(loss):
    def by_hand(model: Any, batch: Any) -> Tensor:
        losses = F.cross_entropy(model(batch[0]).mT, batch[1], reduction="none", ignore_index=-100)
        return losses.sum(1) / (batch[1] != -100).sum(1).clamp(min=1)

    model = make(lambda: nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9)))
    targets = tokens(9, 5)(6)
    targets[1, 2:] = targets[2] = targets[4, 0] = -100
    check(model, (tokens(9, 5)(6), targets), by_hand if loss == "by hand" else loss)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_penalty_on_the_parameters_themselves(share):
    model = make(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, D)))

    def penalised(model: Any, batch: Tensor) -> Tensor:
        penalty = sum(p.square().sum() for p in model.parameters())
        return waves(model, batch) + share * penalty

    check_right_or_refused(model, normal(5)(6), penalised)
    check_right_or_refused(model, normal(5)(6), penalised, k=2)


def test_a_gradient_penalty():
    # The gradient of a gradient: sample by sample, but with a backward pass inside.
    model = make(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)))

    def smooth(model: Any, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square()

    check_right_or_refused(model, normal(5)(6), smooth)


def test_an_input_gradient_without_a_graph():
    # An adversarial example: the first backward pass must not be taken for the measured one.
    model = make(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)))

    def adversarial(model: Any, x: Tensor) -> Tensor:
        moved = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(waves(model, moved).sum(), moved)
        return waves(model, x + 0.1 * slope.sign())

    check_right_or_refused(model, normal(5)(6), adversarial)


def test_autocast():
    model = make(lambda: nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, D)))

    def cast(model: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(x)
        return waves(lambda _: outputs.float(), x)

    check(model.float(), normal(7, 16)(6).float(), cast, tolerance=0.03)


def test_batch_dimension_of_an_unusual_loss_dtype():
    model = make(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh())).float()
    check(model, normal(5)(6).float(), lambda m, x: waves(m, x).double(), tolerance=1e-5)
