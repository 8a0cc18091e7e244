"""Adversarial examples within an l-infinity ball: FGSM and PGD.

Shape legend: n images of any shape (C, ...); C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

_PIECE = 500
# Steps of PGD add up to so many epsilons, so that it can cross the ball and walk along its side.
_REACH = 2.5

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""`(model, inputs, targets) -> inputs` that the model should get wrong."""


@final
@dataclass(frozen=True, eq=False)
class Pixels:
    """Which values pixels can take; an epsilon of 1 is from `low` to `high`.

    Attributes:
        low: (C, 1, ...), the darkest value of each channel.
        high: (C, 1, ...), the brightest.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> Pixels:
        """Read the range off images, however they are normalised.

        Args:
            inputs: (n, C, ...), images of which some are black and some are white somewhere.
        """
        others = [d for d in range(inputs.ndim) if d != 1]
        low, high = inputs.amin(others, keepdim=True), inputs.amax(others, keepdim=True)
        return cls(low[0], high[0])

    def clip(self, inputs: Tensor) -> Tensor:
        """Bring values back into the range."""
        return torch.minimum(torch.maximum(inputs, self.low), self.high)


@final
@dataclass(frozen=True, eq=False)
class FGSM:
    """The fast gradient sign method, `x + epsilon sign(grad_x loss(x))`, within the pixel range.

    Args:
        epsilon: Largest change of a pixel, as a share of the pixel range.
        pixels: The pixel range.

    Source:
        Goodfellow, Shlens, Szegedy, arXiv 1412.6572, section 4.
    """

    epsilon: float
    pixels: Pixels

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Attack images with their labels, (n, C, ...) and (n,)."""
        size = self.epsilon * (self.pixels.high - self.pixels.low)
        return self.pixels.clip(inputs + size * _uphill(model, inputs, targets))


@final
@dataclass(frozen=True, eq=False)
class PGD:
    """Projected gradient descent on the negative loss, from a random start.

    Each step moves every pixel by `2.5 epsilon / steps` along the sign of the loss's gradient and
    brings it back to within epsilon of the image, and into the pixel range.

    Args:
        epsilon: Largest change of a pixel, as a share of the pixel range.
        pixels: The pixel range.
        steps: Steps.
        seed: Draws the start, uniformly within epsilon of the image.

    Source:
        Madry, Makelov, Schmidt, Tsipras, Vladu, arXiv 1706.06083, section 2.1.
    """

    epsilon: float
    pixels: Pixels
    steps: int
    seed: int

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Attack images with their labels, (n, C, ...) and (n,)."""
        size = self.epsilon * (self.pixels.high - self.pixels.low)
        generator = torch.Generator().manual_seed(self.seed)
        start = 2 * torch.rand(inputs.shape, generator=generator).to(inputs.device) - 1
        attacked = self.pixels.clip(inputs + size * start)
        for _ in range(self.steps):
            moved = attacked + _REACH / self.steps * size * _uphill(model, attacked, targets)
            near = torch.minimum(torch.maximum(moved, inputs - size), inputs + size)
            attacked = self.pixels.clip(near)
        return attacked


def accuracy_under(
    attack: Attack | None, model: nn.Module, inputs: Tensor, targets: Tensor
) -> float:
    """Give the share of images that a model, in evaluation mode, still gets right.

    Args:
        attack: The attack; None leaves the images as they are.
        model: The model; its training mode is put back.
        inputs: (n, C, ...) images, as the model takes them.
        targets: (n,) right classes.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    right = 0
    try:
        for x, y in zip(inputs.split(_PIECE), targets.split(_PIECE), strict=True):
            attacked = x if attack is None else attack(model, x, y)
            with torch.no_grad():
                right += int((model(attacked).argmax(1) == y).sum())
    finally:
        for module, training in modes.items():
            module.training = training
    return right / len(targets)


def _uphill(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Give the sign of the loss's gradient, whatever the parameters' `.grad` hold."""
    inputs = inputs.detach().requires_grad_()
    loss = nn.functional.cross_entropy(model(inputs), targets, reduction="sum")
    return torch.autograd.grad(loss, inputs)[0].sign()
