"""Loops as users write them, and what the watch's tests compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FEATURES, CLASSES = 6, 3


def batches(steps: int, k: int, u: int = 8, seed: int = 0) -> list[list[tuple[Tensor, Tensor]]]:
    """Give noisy linear classification: steps x k microbatches of u samples."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(99))
    made = []
    for _ in range(steps):
        inputs = torch.randn(k, u, FEATURES, generator=generator)
        labels = (inputs @ truth).argmax(-1)
        wrong = torch.rand(k, u, generator=generator) < 0.5
        other = torch.randint(CLASSES, (k, u), generator=generator)
        made.append(list(zip(inputs, torch.where(wrong, other, labels), strict=True)))
    return made


def network(*, norm: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(FEATURES, 16)]
    if norm:
        layers.append(nn.BatchNorm1d(16))
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(16, CLASSES))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=1e-3, nesterov=True)


def train(
    model: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    data: list[list[tuple[Tensor, Tensor]]],
    *,
    divide: bool = True,
    scheduler: Any = None,
    set_to_none: bool = True,
    clip: float | None = None,
    scope: Any = None,
    at: Callable[[str], None] = lambda place: None,
) -> None:
    """Accumulate and step; `at` is called at every point of the loop."""
    for parts in data:
        at("step begins")
        for inputs, labels in parts:
            at("before the forward")
            outputs = model(inputs)
            at("after the forward")
            loss = nn.functional.cross_entropy(outputs, labels)
            if scope is not None:
                scope.loss(loss)
            (loss / len(parts) if divide else loss).backward()
            at("after the backward")
        if clip is not None:
            params = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(params, clip)
        at("before the step")
        optimizer.step()
        at("after the step")
        if scheduler is not None:
            scheduler.step()
        at("before zero_grad")
        optimizer.zero_grad(set_to_none=set_to_none)
        at("step ends")


def state_of(*things: Any) -> dict[str, Any]:
    return {str(i): thing.state_dict() for i, thing in enumerate(things)}


def same(a: Any, b: Any) -> bool:
    """Compare nested states bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and bool(torch.equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
