"""Small models, batches for them, and micro-gradients computed in the plainest way there is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gafscope.gradients import supervised
from gafscope.models import cnn, gpt, mlp, resnet18, vit

CLASSES = 5
VOCABULARY = 11
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(192, (6,), CLASSES),
    "mlp-layer": lambda: mlp(192, (6,), CLASSES, norm="layer"),
    "mlp-batch": lambda: mlp(192, (6,), CLASSES, norm="batch"),
    "cnn": lambda: cnn(3, CLASSES, width=4),
    "cnn-group": lambda: cnn(3, CLASSES, width=4, norm="group"),
    "cnn-batch": lambda: cnn(3, CLASSES, width=4, norm="batch"),
    "resnet-group": lambda: resnet18(CLASSES, norm="group", width=4),
    "resnet-batch": lambda: resnet18(CLASSES, norm="batch", width=4),
    "resnet-pre-group": lambda: resnet18(CLASSES, norm="group", width=4, pre_activation=True),
    "resnet-pre-batch": lambda: resnet18(CLASSES, norm="batch", width=4, pre_activation=True),
    "vit": lambda: vit(CLASSES, image_size=8, patch_size=4, dim=8, depth=2, heads=2),
    "gpt": lambda: gpt(VOCABULARY, context=8, dim=8, depth=2, heads=2),
    "gpt-untied": lambda: gpt(VOCABULARY, context=8, dim=8, depth=2, heads=2, tie_weights=False),
}
loss = supervised(F.cross_entropy)


def make(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().to(dtype)


def batch(name: str, n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs and targets: images of 8 x 8, of 16 x 16 for the resnets, or tokens."""
    generator = torch.Generator().manual_seed(1)
    if name.startswith("gpt"):
        tokens = torch.randint(VOCABULARY, (n, 7), generator=generator)
        return tokens[:, :-1], tokens[:, 1:].clone()
    size = 16 if name.startswith("resnet") else 8
    images = torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64)
    return images.to(dtype), torch.randint(CLASSES, (n,), generator=generator)


def plain_rows(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], batch: Any, k: int
) -> dict[str, Tensor]:
    """One copy of the model and one `backward` a microbatch."""
    n = len(pytree.tree_leaves(batch)[0])
    rows: dict[str, list[Tensor]] = {}
    for start in range(0, n, n // k):
        twin = copy.deepcopy(model)
        twin.zero_grad()
        part = pytree.tree_map(lambda leaf, a=start: leaf[a : a + n // k], batch)
        loss(twin, part).mean().backward()
        for name, p in twin.named_parameters():
            if p.requires_grad:
                gradient = torch.zeros_like(p) if p.grad is None else p.grad
                rows.setdefault(name, []).append(gradient)
    return {name: torch.stack(gradients).detach() for name, gradients in rows.items()}


def relative(found: Any, expected: Any) -> float:
    """Largest error of a row, over that row's norm."""
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].shape == expected[name].shape
        assert found[name].dtype == expected[name].dtype
    flat, wanted = (
        torch.cat([rows.reshape(len(rows), -1).double() for rows in named.values()], 1)
        for named in (found, expected)
    )
    return float(((flat - wanted).norm(dim=1) / wanted.norm(dim=1)).max())
