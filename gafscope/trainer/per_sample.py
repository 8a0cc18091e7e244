"""Macrobatches whose samples are the microbatches: every sample is accepted or rejected.

Shape legend: n samples of the macrobatch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from gafscope.aggregation import Rule, per_sample_step
from gafscope.gradients import Loss, Supervised
from gafscope.gradients.problem import batch_size
from gafscope.gradients.running import RunningVector
from gafscope.trainer.calibration import autocast_of
from gafscope.trainer.macrobatch import Macrobatch, Outcome, update_norm
from gafscope.trainer.microbatch import Microbatches
from gafscope.trainer.shared_macrobatch import SharedMacrobatch

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer

SAMPLES = "samples"
"""The number of microbatches that makes each sample one."""


def make_macrobatch(trainer: Trainer) -> Macrobatch | SharedMacrobatch | PerSampleMacrobatch:
    """Make what computes a trainer's macrobatches.

    Args:
        trainer: The trainer, its settings checked.
    """
    autocast = autocast_of(trainer)
    parameters = trainer.parameters
    if isinstance(trainer.microbatches, str):
        return PerSampleMacrobatch(trainer.model, parameters, trainer.loss, autocast)
    microbatches = Microbatches(
        model=torch.compile(trainer.model) if trainer.compile else trainer.model,
        parameters=parameters,
        loss=trainer.loss,
        count=trainer.microbatches,
        autocast=autocast,
        statistics=trainer.statistics,
        seed=trainer.seed,
    )
    if trainer.ranks is not None:
        return SharedMacrobatch(microbatches, trainer.ranks)
    return Macrobatch(microbatches)


@final
@dataclass(eq=False)
class PerSampleMacrobatch:
    """Computes macrobatches of one model, sample by sample.

    Args:
        model: The model.
        parameters: The trainable parameters by name.
        loss: The loss.
        autocast: Makes the context of each forward pass.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    loss: Loss
    autocast: Callable[[], AbstractContextManager[Any]]

    def __post_init__(self):
        # One object for all steps: what an engine has found out about a loss is kept with it.
        self._watched = _WatchedLoss(self.loss, self.autocast)

    def run(self, batch: Any, rule: Rule, step: int, layers: bool) -> Outcome:
        """Differentiate a macrobatch and decide.

        Args:
            batch: A pytree of tensors with n samples.
            rule: The weighting; a sequential one visits the samples in their order.
            step: The step.
            layers: Compute the Gramian by layer, and record it.

        Returns:
            The outcome. Parameters and buffers are untouched and every `.grad` is None.

        Raises:
            UserError: If the loss returns a wrong shape, or a rule of the user's own a decision
                that contradicts itself.
        """
        n = batch_size(batch)
        device = next(iter(self.parameters.values())).device
        self._watched.accuracies = torch.full((n,), math.nan, device=device)
        indexed = torch.arange(n, device=device), batch
        found = per_sample_step(self.model, self._watched, indexed, rule, layers=layers)
        update = RunningVector()
        for parameter in self.parameters.values():
            update.tensors.append(parameter.grad)
            parameter.grad = None
        return Outcome(
            found.decision,
            found.losses.tolist(),
            self._watched.accuracies.tolist(),
            update if found.decision.step else None,
            update_norm(found.decision, found.gramian),
            found.gramian,
            recorded=layers,
        )


@final
class _WatchedLoss:
    """The loss of batches (indices, batch), which notes the accuracy of each sample it sees.

    An engine may call the loss for all samples at once, for one at a time, for some of them
    again, or inside vmap; the indices tell which samples they are.
    """

    def __init__(self, loss: Loss, autocast: Callable[[], AbstractContextManager[Any]]):
        self.accuracies = torch.empty(0)
        self._loss = loss
        self._autocast = autocast

    def __call__(self, model: Callable[..., Any], indexed: tuple[Tensor, Any], /) -> Tensor:
        indices, batch = indexed
        with self._autocast():
            if not isinstance(self._loss, Supervised):
                return self._loss(model, batch)
            losses, outputs = self._loss.with_outputs(model, batch)
        right = self._loss.accuracy(outputs, batch[1])
        if right is not None:
            _Note.apply(right, indices, self.accuracies)
        return losses


@final
class _Note(torch.autograd.Function):
    """Write values to their places in a tensor, also inside vmap, which hands the values out."""

    @staticmethod
    def forward(values: Tensor, indices: Tensor, into: Tensor) -> Tensor:
        into[indices] = values.to(into.dtype)
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep: nobody differentiates an accuracy."""

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: Any, values: Tensor, indices: Tensor, into: Tensor
    ) -> tuple[Tensor, int]:
        values, indices = values.movedim(in_dims[0], 0), indices.movedim(in_dims[1], 0)
        return _Note.forward(values, indices, into), 0
