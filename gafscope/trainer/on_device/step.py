# pyright: reportPrivateImportUsage=false
"""A step that never waits for the device: the decision stays there, and a skip is a mask.

The usual step reads losses and inner products back to decide, so a GPU idles until Python has
answered. Here the decision is arithmetic on tensors, the optimizer always runs, and where the
decision is to skip, parameters and optimizer state are put back. What is recorded is read back in
one copy for many steps. On a GPU the step is captured in a CUDA graph.

Shape legend: k microbatches; P numbers of a gradient; R numbers of a step's record.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gafscope.aggregation import Decision, Fold
from gafscope.errors import UserError
from gafscope.geometry import gramian
from gafscope.gradients import Gramian, Supervised
from gafscope.gradients.loss import check_differentiable, mean_loss
from gafscope.gradients.problem import batch_size
from gafscope.trainer.keep import Made
from gafscope.trainer.macrobatch import Macrobatch, Outcome
from gafscope.trainer.microbatch import Microbatches
from gafscope.trainer.on_device.decision import DeviceDecision, combine_on_device, decide_on_device
from gafscope.trainer.on_device.graph import DeviceGraph
from gafscope.trainer.on_device.obstacle import device_obstacle, fixed_fold
from gafscope.trainer.on_device.rows import DeviceRows
from gafscope.trainer.on_device.statistics import DeviceStatistics
from gafscope.trainer.row import current_lr

if TYPE_CHECKING:
    from gafscope.trainer.trainer import Trainer

log = logging.getLogger("gafscope")

READ_EVERY = 100
"""Steps that are read back together, at most."""


def device_step_of(trainer: Trainer, macrobatch: object) -> DeviceStep | None:
    """Make what takes a trainer's decisions on the device.

    Args:
        trainer: The trainer, its settings checked.
        macrobatch: What computes its usual macrobatches.

    Returns:
        The step; None where the trainer's settings do not allow it, which is logged.
    """
    fold, obstacle = fixed_fold(trainer.aggregator), device_obstacle(trainer)
    if obstacle is not None:
        log.info("Decisions are not taken on the device: %s.", obstacle)
        return None
    assert fold is not None and isinstance(macrobatch, Macrobatch)
    return DeviceStep(trainer, macrobatch.microbatches, fold)


@final
class DeviceStep:
    """Makes the steps of one trainer on its device.

    It takes over after the first update, which gives the optimizer its state.

    Args:
        trainer: The trainer; `device_obstacle` has found none.
        microbatches: Its model, parameters and loss.
        fold: How its rule runs.
    """

    def __init__(self, trainer: Trainer, microbatches: Microbatches, fold: Fold):
        self._trainer = trainer
        self._microbatches = microbatches
        self._fold = fold
        self._statistics = DeviceStatistics(trainer.model)
        self._open = torch.ones((), dtype=torch.bool, device=trainer.device)
        self._rows = DeviceRows(microbatches.count, list(microbatches.parameters.values()))
        self._pending: list[tuple[int, float, Tensor]] = []
        self._since = 0.0
        self._compute_here = self._compute
        if trainer.device.type == "cuda":
            self._compute_here = DeviceGraph(self._compute, trainer.optimizer)

    def takes(self, layers: bool) -> bool:
        """Tell whether it makes the trainer's next step.

        Args:
            layers: Whether the Gramian by layer is wanted, for which the usual step is made.
        """
        return not layers and self._trainer.updates >= max(self._trainer.warmup_updates, 1)

    def run(self, batch: Any, step: int, due: bool) -> list[Made]:
        """Do one step.

        Args:
            batch: The macrobatch, on the device.
            step: The step.
            due: Read back now.

        Returns:
            The steps that were read back, if that was due for this or another reason.

        Raises:
            UserError: If the loss returns a wrong shape or cannot be differentiated, or the
                microbatches use different parameters.
        """
        if not self._pending:
            self._since = time.perf_counter()
        trainer, k = self._trainer, self._microbatches.count
        if trainer.device.type == "cuda":
            _make_capturable(trainer.optimizer)
        self._open.fill_(trainer.gate is None or trainer.gate.opens(step))
        lr = current_lr(trainer.optimizer)
        record = self._compute_here(batch, lambda i: self._microbatches.draw_for(step, i))
        self._microbatches.draw_for(step, k)
        self._pending.append((step, lr, record))
        done = step + 1
        ends = done == trainer.ends_at or done % trainer.checkpoint_every == 0
        return self.read() if due or ends or len(self._pending) >= READ_EVERY else []

    def read(self) -> list[Made]:
        """Wait for the device and give the steps that were made since the last call."""
        if not self._pending:
            return []
        records_mR = torch.stack([record for _, _, record in self._pending]).cpu()
        seconds = (time.perf_counter() - self._since) / len(self._pending)
        made = []
        for (step, lr, _), record in zip(self._pending, records_mR, strict=True):
            outcome, stepped = _unpack(record, self._microbatches.count)
            made.append(Made(step, outcome, stepped, lr, seconds))
            self._trainer.updates += stepped
            self._trainer.changed |= stepped
        self._pending = []
        return made

    def _compute(self, batch: Any, draw: Callable[[int], None]) -> Tensor:
        """Do the step and give its record, (R,) float64."""
        losses_k, accuracies_k = self._differentiate(batch, draw)
        with torch.no_grad():
            known = torch.isfinite(losses_k)
            matrix = gramian(self._rows.rows_kP)
            matrix = torch.where(known[:, None] & known[None, :], matrix, math.nan)
            decision = decide_on_device(self._fold, matrix)
            step = decision.step & self._open
            update = combine_on_device(self._fold, decision, self._rows.rows_kP)
            self._update(self._rows.as_gradients(update), step)
            every = self._trainer.batch_norm == "all"
            self._statistics.commit(decision.finite if every else decision.taken & step)
        return _pack(losses_k, accuracies_k, decision, step, matrix)

    def _differentiate(self, batch: Any, draw: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        parameters, k = list(self._microbatches.parameters.values()), self._microbatches.count
        size = batch_size(batch) // k
        losses, accuracies = [], []
        self._statistics.begin()
        for parameter in parameters:
            parameter.grad = None
        for i in range(k):
            part = pytree.tree_map(lambda leaf, i=i: leaf[i * size : (i + 1) * size], batch)
            draw(i)
            loss, accuracy = self._forward(part, size)
            check_differentiable(loss)
            loss.backward()
            self._rows.put(i, [parameter.grad for parameter in parameters])
            for parameter in parameters:
                parameter.grad = None
            self._statistics.collect(torch.isfinite(loss.detach()))
            losses.append(loss.detach().double())
            accuracies.append(accuracy.double())
        return torch.stack(losses), torch.stack(accuracies)

    def _forward(self, part: Any, size: int) -> tuple[Tensor, Tensor]:
        """`evaluate.loss_and_accuracy`, with the accuracy left on the device."""
        model, loss, right = self._microbatches.model, self._microbatches.loss, None
        with self._microbatches.autocast():
            if isinstance(loss, Supervised):
                losses, outputs = loss.with_outputs(model, part)
                right = loss.accuracy(outputs, part[1])
            else:
                losses = loss(model, part)
            mean = mean_loss(losses, size)
        return mean, mean.new_full((), math.nan) if right is None else right.mean()

    def _update(self, gradients: list[Tensor | None], step: Tensor) -> None:
        """Step the optimizer; where `step` is false nothing has changed afterwards."""
        optimizer = self._trainer.optimizer
        parameters = list(self._microbatches.parameters.values())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self._trainer.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self._trainer.clip_norm)
        moving = [p for p in parameters if p.grad is not None]
        tensors = moving + _state_of(optimizer, moving)
        before = [tensor.clone() for tensor in tensors]
        optimizer.step()
        after = moving + _state_of(optimizer, moving)
        if len(after) != len(tensors) or any(map(_differ, after, tensors)):
            raise UserError(
                f"The optimizer ({type(optimizer).__name__}) made new state after the first "
                "update, which a skipped step on the device cannot take back: a parameter was "
                "used for the first time. Set device_decision=False."
            )
        for now, old in zip(tensors, before, strict=True):
            torch.where(step, now, old, out=now)
        for parameter in parameters:
            parameter.grad = None


def _state_of(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[Tensor]:
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _differ(a: Tensor, b: Tensor) -> bool:
    return a is not b


def _make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Keep step counters on the GPU, where they can be masked; SGD has none."""
    # A checkpoint of the usual step brings them back to the processor.
    groups = [g for g in optimizer.param_groups if not g.get("capturable", True)]
    if not groups:
        return
    for group in groups:
        group["capturable"] = True
    # Loading moves counters that exist already.
    optimizer.load_state_dict(optimizer.state_dict())


def _pack(
    losses_k: Tensor,
    accuracies_k: Tensor,
    decision: DeviceDecision,
    step: Tensor,
    matrix_kk: Tensor,
) -> Tensor:
    parts = [
        losses_k,
        accuracies_k,
        (decision.taken & decision.step).double(),
        decision.finite.double(),
        decision.distances,
        decision.weights,
        torch.stack([decision.step.double(), step.double(), decision.norm]),
        matrix_kk.flatten(),
    ]
    return torch.cat(parts)


def _unpack(record_R: Tensor, k: int) -> tuple[Outcome, bool]:
    """Undo `_pack`, on the CPU."""
    parts = record_R.split([k] * 6 + [3, k * k])
    losses, accuracies, accepted, finite, distances, weights, rest, matrix = parts
    decided, stepped, norm = rest.tolist()
    decision = Decision(
        weights=weights.clone(),
        accepted=accepted.bool(),
        step=bool(decided),
        distances=distances.clone(),
        finite=finite.bool(),
    )
    # As in the usual step, the whole Gramian is recorded where it is no extra work there.
    known = Gramian(matrix.view(k, k).clone(), engine="loop") if k == 2 else None
    outcome = Outcome(decision, losses.tolist(), accuracies.tolist(), None, norm, known)
    return outcome, bool(stepped)
