"""Small problems, networks and comparisons that the trainer's tests share."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gafscope.aggregation import GAF
from gafscope.data import MicrobatchSampler, Split
from gafscope.gradients import supervised
from gafscope.trainer import Trainer

FEATURES, CLASSES = 6, 3
LOSS = supervised(nn.functional.cross_entropy)


def samples(n: int, seed: int = 0, noise: float = 0.4) -> tuple[Tensor, Tensor]:
    """Give noisy linear classification: some macrobatches agree, some do not."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, FEATURES, generator=generator)
    truth = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(99))
    labels = (inputs @ truth).argmax(1)
    wrong = torch.rand(n, generator=generator) < noise
    other = torch.randint(CLASSES, (n,), generator=generator)
    return inputs, torch.where(wrong, other, labels)


def macrobatches(count: int, k: int, u: int = 8, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    inputs, labels = samples(count * k * u, seed)
    return list(zip(inputs.split(k * u), labels.split(k * u), strict=True))


def sampler(k: int, u: int = 8, seed: int = 0, n: int = 240) -> MicrobatchSampler:
    inputs, labels = samples(n, seed)
    split = Split(inputs, labels, labels)
    return MicrobatchSampler(split, microbatches=k, microbatch_size=u, seed=seed)


def network(*, norm: bool = False, dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(FEATURES, 16)]
    if norm:
        layers.append(nn.BatchNorm1d(16))
    layers.append(nn.Tanh())
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(16, CLASSES))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=1e-3, nesterov=True)


def trainer_of(model: nn.Module, optimizer: Any = None, **settings: Any) -> Trainer:
    """Make a quiet trainer of cross-entropy."""
    settings = {"aggregator": GAF(tau=0.7), "progress": False} | settings
    loss = settings.pop("loss", LOSS)
    return Trainer(model, loss, sgd(model) if optimizer is None else optimizer, **settings)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """Copy everything that a rejected step must leave alone."""
    scheduler = trainer.scheduler
    return copy.deepcopy(
        {
            "model": dict(trainer.model.state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "updates": trainer.updates,
        }
    )


def same(a: Any, b: Any) -> bool:
    """Compare nested states bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and bool(torch.equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_scalars(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Compare two tables of scalars exactly, but for the seconds; NaN equals NaN."""
    assert sorted(a.columns) == sorted(b.columns)
    assert len(a) == len(b)
    for name in a.columns.drop("seconds"):
        left, right = a[name].tolist(), b[name].tolist()
        assert repr(left) == repr(right), name
        assert a[name].dtype == b[name].dtype, name


def gradients_of(model: nn.Module, batch: tuple[Tensor, Tensor], k: int) -> list[Tensor]:
    """Differentiate the microbatches one by one: (P,) float32 each."""
    parts = zip(batch[0].chunk(k), batch[1].chunk(k), strict=True)
    result = []
    for inputs, targets in parts:
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        result.append(torch.cat([p.grad.detach().flatten() for p in model.parameters()]))
    model.zero_grad()
    return result


def cosine_distance(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(1 - a @ b / (a.norm() * b.norm()))


def assign_gradient(model: nn.Module, vector: Tensor) -> None:
    parameters: Sequence[nn.Parameter] = list(model.parameters())
    parts = vector.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()


class InfiniteGradient(torch.autograd.Function):
    """The identity with an infinite derivative where the input says so."""

    @staticmethod
    def forward(ctx, values: Tensor, spoilt: Tensor) -> Tensor:
        ctx.save_for_backward(spoilt)
        return values.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (spoilt,) = ctx.saved_tensors
        return torch.where(spoilt[:, None], math.inf, gradient), None


# A sample is spoilt by its first feature; the losses below look for this mark.
MARK = 1234.0


def infinite_gradient(model, batch):
    inputs, targets = batch
    spoilt = inputs[:, 0] == MARK
    inputs = torch.where(spoilt[:, None], 0.0, inputs)
    return LOSS(lambda x: InfiniteGradient.apply(model(x), spoilt), (inputs, targets))
