"""The networks that costs are measured on, each with a random batch that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from gafscope.errors import UserError, unknown_name
from gafscope.gradients import Loss, supervised
from gafscope.models import cnn, gpt, mlp, resnet18, vit

_PIXELS, _TOKENS = (3, 32, 32), 64
_BYTES = 256


@final
@dataclass(frozen=True, eq=False)
class Case:
    """One network and one batch.

    Attributes:
        model: The network, without BatchNorm, in training mode.
        loss: `(model, batch) -> (n,)`.
        batch: `(inputs, targets)` of n samples.
    """

    model: nn.Module
    loss: Loss
    batch: tuple[Tensor, Tensor]

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.batch[0])

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, tied ones once."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def first(self, n: int) -> tuple[Tensor, Tensor]:
        """Give the first n samples."""
        return self.batch[0][:n], self.batch[1][:n]


@final
@dataclass(frozen=True)
class _Recipe:
    build: Callable[[int], nn.Module]
    width: int
    classes: int


# Width: the number that the parameters grow with, quadratically but for the first and last layer.
_RECIPES = {
    "resnet18": _Recipe(lambda w: resnet18(100, stem="cifar", norm="group", width=w), 64, 100),
    "vit": _Recipe(lambda w: vit(10, dim=w, heads=4), 128, 10),
    "gpt": _Recipe(lambda w: gpt(_BYTES, context=_TOKENS, dim=w, depth=4), 256, _BYTES),
    "cnn": _Recipe(lambda w: cnn(3, 10, width=w), 32, 10),
    "mlp": _Recipe(lambda w: mlp(3 * 32 * 32, [w, w], 10), 128, 10),
}


def case_names() -> tuple[str, ...]:
    """Name the networks.

    Returns:
        The names.
    """
    return tuple(_RECIPES)


def check_cases(names: tuple[str, ...]) -> None:
    """Refuse names that are none of `case_names()`.

    Args:
        names: What the user asked for.

    Raises:
        UserError: If one is unknown, or there is none.
    """
    if not names:
        raise UserError(f"cost needs at least one model; choose from {', '.join(_RECIPES)}.")
    for name in names:
        if name not in _RECIPES:
            raise unknown_name("model", name, _RECIPES)


def default_width(name: str) -> int:
    """Give the width that a network has in the table of engines.

    Args:
        name: One of `case_names()`.

    Returns:
        Channels of the first convolution, numbers a token, or hidden units.
    """
    return _RECIPES[name].width


def make_case(
    name: str, n: int, *, device: str = "cpu", seed: int = 0, width: int | None = None
) -> Case:
    """Make a network and n random samples for it.

    Args:
        name: One of `case_names()`.
        n: Number of samples: 3x32x32 images, or 64 tokens each followed by its next one.
        device: Where both live.
        seed: Seed of weights and samples; the global random state is left as it was.
        width: Width of the network; None for `default_width`.

    Returns:
        The case.
    """
    recipe = _RECIPES[name]
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = recipe.build(recipe.width if width is None else width)
        if name == "gpt":
            tokens = torch.randint(recipe.classes, (n, _TOKENS + 1))
            batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        else:
            batch = torch.randn(n, *_PIXELS), torch.randint(recipe.classes, (n,))
    inputs, targets = batch[0].to(device), batch[1].to(device)
    return Case(model.to(device), supervised(nn.functional.cross_entropy), (inputs, targets))
