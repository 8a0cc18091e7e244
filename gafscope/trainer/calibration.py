"""The extra Gramian that a self-calibrating rule asks for now and then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from gafscope.aggregation import Calibrating
from gafscope.errors import UserError
from gafscope.gradients import Gramian, Loss, gramian
from gafscope.gradients.problem import batch_size

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer


def autocast_of(trainer: Trainer) -> Callable[[], AbstractContextManager[Any]]:
    """Give what makes the context of each forward pass.

    Args:
        trainer: The trainer.
    """
    if trainer.precision == "bf16":
        return partial(torch.autocast, trainer.device.type, dtype=torch.bfloat16)
    return nullcontext


@final
class Calibration:
    """Measures for the trainer's rule, if it is one that calibrates itself.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        # One object for all steps: what an engine has found out about a loss is kept with it.
        self._loss: Loss = trainer.loss
        if trainer.precision == "bf16":
            self._loss = _InContext(trainer.loss, autocast_of(trainer))

    def before(self, batch: Any) -> None:
        """Give the rule the Gramian that it wants before the decision of this step, if any.

        The macrobatch is cut at random into m equal microbatches, m being the largest divisor of
        its n samples that is not above the rule's `calibration_rows`; with BatchNorm each has at
        least two samples. Model and random state stay as they are.

        Args:
            batch: The macrobatch.

        Raises:
            UserError: If the macrobatch cannot be cut so.
        """
        rule, model = self._trainer.aggregator, self._trainer.model
        if not isinstance(rule, Calibrating) or not rule.due(self._trainer.step):
            return
        n, most = batch_size(batch), rule.calibration_rows
        if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
            most = min(most, n // 2)
        rows = max((m for m in range(1, most + 1) if n % m == 0), default=1)
        if rows < 2:
            raise UserError(
                f"{type(rule).__name__} calibrates on a macrobatch cut into at most {most} equal "
                f"microbatches, but {n} samples cannot be cut; use a macrobatch size with small "
                "divisors (and drop_last=True for a DataLoader whose last one is incomplete)."
            )
        # A balanced macrobatch is ordered by class, and a piece of one class is no random part.
        seed = self._trainer.seed * 1_000_003 + self._trainer.step
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        shuffled = pytree.tree_map(lambda leaf: leaf[order.to(leaf.device)], batch)
        rule.calibrate(self._measure(shuffled, rows))

    def _measure(self, batch: Any, rows: int) -> Gramian:
        trainer, ranks = self._trainer, self._trainer.ranks
        if ranks is None:
            return gramian(trainer.model, self._loss, batch, microbatches=rows, layers=False)
        matrix = torch.zeros(rows, rows, dtype=torch.float64)
        if ranks.leads:
            found = gramian(trainer.model, self._loss, batch, microbatches=rows, layers=False)
            matrix = found.matrix.cpu()
        return Gramian(ranks.from_leader(matrix))


@final
class _InContext:
    """A loss that is computed inside a context."""

    def __init__(self, loss: Loss, context: Callable[[], AbstractContextManager[Any]]):
        self._loss, self._context = loss, context

    def __call__(self, model: Callable[..., Any], batch: Any, /) -> Tensor:
        with self._context():
            return self._loss(model, batch)
