"""Micro-gradients: one microbatch after another, forward and backward."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gafscope.gradients import GradientRows, Loss
from gafscope.gradients.batch_norm import RunningStatistics
from gafscope.gradients.loss import check_differentiable
from gafscope.gradients.running import Gradient
from gafscope.trainer.evaluate import loss_and_accuracy


@final
@dataclass(eq=False)
class Microbatches:
    """Differentiates the microbatches of one model.

    What a microbatch draws (dropout) depends on the seed, the step and its place in the macrobatch
    alone, so it is the same on whichever rank it is differentiated.

    Args:
        model: Called by the loss; may be compiled.
        parameters: The trainable parameters by name.
        loss: The loss.
        count: k.
        autocast: Makes the context of each forward pass.
        statistics: BatchNorm's running statistics.
        seed: Seed of torch's global generators.

    Attributes:
        losses: Mean loss of each microbatch of the macrobatch so far.
        accuracies: Their shares of right answers; NaN where there are no classes.
    """

    model: Callable[..., Any]
    parameters: dict[str, nn.Parameter]
    loss: Loss
    count: int
    autocast: Callable[[], AbstractContextManager[Any]]
    statistics: RunningStatistics
    seed: int
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """Begin a macrobatch."""
        self.losses, self.accuracies = [], []
        self.statistics.begin()

    def gradient(self, batch: Any, step: int, i: int, size: int) -> Gradient:
        """Differentiate a microbatch.

        Args:
            batch: The macrobatch, a pytree of tensors.
            step: Its step.
            i: Which of its microbatches.
            size: u, samples of a microbatch.

        Returns:
            Its gradient, nothing when its loss is not finite. Every `.grad` is None.

        Raises:
            UserError: If the loss returns a wrong shape or cannot be differentiated.
        """
        part = pytree.tree_map(lambda leaf: leaf[i * size : (i + 1) * size], batch)
        parameters = list(self.parameters.values())
        for parameter in parameters:
            parameter.grad = None
        self.draw_for(step, i)
        with self.autocast():
            loss, accuracy = loss_and_accuracy(self.model, self.loss, part, size)
        self.losses.append(loss.item())
        self.accuracies.append(accuracy)
        gradient: Gradient = []
        if math.isfinite(self.losses[-1]):
            check_differentiable(loss)
            loss.backward()
            # Take the gradients over instead of copying them.
            gradient = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        # Only now: the backward of BatchNorm still refers to the running statistics.
        self.statistics.collect(finite=bool(gradient))
        return gradient

    def draw_for(self, step: int, i: int) -> None:
        """Seed torch's global generators.

        Args:
            step: The step.
            i: The microbatch that draws next; k for what comes after the last one.
        """
        digest = hashlib.blake2b(f"{self.seed} {step} {i}".encode(), digest_size=8).digest()
        # torch's CPU generator starts from 32 bits.
        seed = int.from_bytes(digest, "little") % 2**32
        torch.default_generator.manual_seed(seed)
        device = next(iter(self.parameters.values())).device
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)

    def rows(self, gradients: list[Gradient]) -> GradientRows:
        """Stack gradients; one that is empty (its loss is not finite) becomes a row of NaN.

        Args:
            gradients: What `gradient` gave.
        """
        named = {}
        for j, (name, parameter) in enumerate(self.parameters.items()):
            rows = []
            for gradient in gradients:
                row = gradient[j] if gradient else None
                missing = 0.0 if gradient else math.nan
                rows.append(torch.full_like(parameter, missing) if row is None else row)
            named[name] = torch.stack([row.detach() for row in rows])
        return GradientRows(named, engine="loop")
