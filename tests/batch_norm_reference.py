"""Networks with running statistics, and where PyTorch's own forwards would move these."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CLASSES = 3


def images(count: int, k: int, u: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Give macrobatches of k microbatches whose means and scales differ."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(count * k, 1, 1, 1, 1, generator=generator) * 4
    inputs = (torch.randn(count * k, u, 2, 4, 4, generator=generator) + 1) * scales
    targets = torch.randint(CLASSES, (count, k * u), generator=generator)
    return list(zip(inputs.view(count, k * u, 2, 4, 4), targets, strict=True))


def convolutional(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES))


class Twice(nn.Module):
    """One layer that runs twice in a forward pass."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(2, 4, 3), norm
        self.head = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        values = self.norm(self.stem(inputs))
        return self.head(self.norm(values.exp().clamp(max=9)).flatten(1))


class SometimesNormalised(nn.Module):
    """A layer that some microbatches pass by."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(2, 4, 3), nn.Linear(16, CLASSES)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, inputs: Tensor) -> Tensor:
        values = self.stem(inputs)
        values = self.norm(values) if inputs[0, 0, 0, 0] > 1 else values
        return self.head(torch.tanh(values).flatten(1))


MODELS = {
    "batch norm": lambda: convolutional(nn.BatchNorm2d(4)),
    "momentum 1": lambda: convolutional(nn.BatchNorm2d(4, momentum=1.0)),
    "momentum 0.7": lambda: convolutional(nn.BatchNorm2d(4, momentum=0.7)),
    "cumulative": lambda: convolutional(nn.BatchNorm2d(4, momentum=None)),
    "twice": lambda: Twice(nn.BatchNorm2d(4)),
    "twice, cumulative": lambda: Twice(nn.BatchNorm2d(4, momentum=None)),
    "sometimes": SometimesNormalised,
    "instance norm": lambda: convolutional(
        nn.InstanceNorm2d(4, momentum=0.3, track_running_stats=True)
    ),
    "instance norm, no momentum": lambda: convolutional(
        nn.InstanceNorm2d(4, momentum=None, track_running_stats=True)
    ),
    "no statistics": lambda: convolutional(nn.BatchNorm2d(4, track_running_stats=False)),
}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def native(
    model: nn.Module, batch: tuple[Tensor, Tensor], k: int, chosen: Sequence[int]
) -> dict[str, Tensor]:
    """Give the statistics after PyTorch's own forwards of the chosen microbatches."""
    copied = copy.deepcopy(model).train()
    parts = batch[0].chunk(k)
    with torch.no_grad():
        for i in chosen:
            copied(parts[i])
    return buffers(copied)


def assert_statistics(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
