"""One macrobatch: micro-gradients, a decision, and the update that follows.

Sequential rules stream: only the running vector and the newest gradient exist. Any other rule,
and every step whose Gramian by layer is recorded, holds the k gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gafscope import geometry
from gafscope.aggregation import (
    Decision,
    Fold,
    Observing,
    RowRule,
    Rule,
    Visitor,
    Weighting,
    aggregate,
    check_decision,
)
from gafscope.gradients import GradientRows, Gramian, Loss
from gafscope.gradients.batch_norm import RunningStatistics
from gafscope.gradients.loss import check_differentiable
from gafscope.gradients.problem import batch_size
from gafscope.gradients.running import Gradient, RunningVector
from gafscope.trainer.evaluate import loss_and_accuracy


@final
@dataclass(eq=False)
class Outcome:
    """What a macrobatch gave.

    Attributes:
        decision: The rule's decision.
        losses: Mean loss of each microbatch.
        accuracies: Share of right answers of each microbatch; NaN where there are no classes.
        update: The combined gradient, None when the rule skips.
        norm: Its norm.
        gramian: Inner products, where they are known.
        recorded: Whether the Gramian belongs into the record at this step.
        scalars: What a rule that needs rows adds to the record.
    """

    decision: Decision
    losses: list[float]
    accuracies: list[float]
    update: RunningVector | None
    norm: float
    gramian: Gramian | None = None
    recorded: bool = True
    scalars: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(eq=False)
class Macrobatch:
    """Computes macrobatches of one model.

    Args:
        model: Called by the loss; may be compiled.
        parameters: The trainable parameters by name.
        loss: The loss.
        microbatches: k.
        autocast: Makes the context of each forward pass.
        statistics: BatchNorm's running statistics.
    """

    model: Callable[..., Any]
    parameters: dict[str, nn.Parameter]
    loss: Loss
    microbatches: int
    autocast: Callable[[], AbstractContextManager[Any]]
    statistics: RunningStatistics
    _products: geometry.StreamingProducts = field(default_factory=geometry.StreamingProducts)
    _losses: list[float] = field(default_factory=list)
    _accuracies: list[float] = field(default_factory=list)

    def run(self, batch: Any, rule: Rule, layers: bool) -> Outcome:
        """Differentiate a macrobatch and decide.

        Args:
            batch: A pytree of tensors with k * u samples.
            rule: The rule.
            layers: Compute the Gramian by layer, which holds all k gradients.

        Returns:
            The outcome. Parameters are untouched and every `.grad` is None.

        Raises:
            UserError: If the loss returns a wrong shape, or a rule of the user's own a decision
                that contradicts itself.
        """
        self._losses, self._accuracies = [], []
        self.statistics.begin()
        size = batch_size(batch) // self.microbatches
        fold: Fold | None = getattr(rule, "fold", None)
        if isinstance(rule, RowRule):
            return self._combine(batch, size, rule)
        if fold is not None and not layers:
            outcome = self._stream(batch, size, fold)
            if isinstance(rule, Observing):
                rule.observe(outcome.decision)
            return outcome
        return self._hold(batch, size, rule, fold, layers)

    def _stream(self, batch: Any, size: int, fold: Fold) -> Outcome:
        visitor, running = Visitor(fold, self.microbatches), RunningVector()
        squares, dot = [], math.nan
        for i in range(self.microbatches):
            gradient = self._gradient(batch, i, size)
            square, dot = self._products(gradient, running.tensors) if gradient else (math.nan,) * 2
            squares.append(square)
            if factors := visitor.visit(square, dot):
                running.fold(gradient, *factors)
        decision = visitor.decision()
        if decision.step:
            running.divide(visitor.divisor)
        # With two microbatches the running vector at the second visit is the first gradient
        # (or nothing, if that was zero), so the whole Gramian is known at no cost.
        gramian = _pair_gramian(squares, dot) if self.microbatches == 2 else None
        return self._outcome(decision, running, visitor.norm, gramian)

    def _hold(
        self, batch: Any, size: int, rule: Weighting, fold: Fold | None, layers: bool
    ) -> Outcome:
        gradients = [self._gradient(batch, i, size) for i in range(self.microbatches)]
        if layers:
            gramian = _on_cpu(self._rows(gradients).gramian())
        else:
            gramian = Gramian(geometry.held_gramian(gradients), engine="loop")
        decision = rule(gramian)
        check_decision(decision, gramian.matrix, rule)
        running = RunningVector()
        for i in decision.accepted.nonzero().flatten().tolist():
            if fold is None:
                running.fold(gradients[i], 1.0, float(decision.weights[i]))
            else:
                # In the order and with the factors of streaming, so that measuring by layer
                # does not change the update's last bit.
                running.fold(gradients[i], fold.keep, fold.add if running.tensors else 1.0)
        if fold is not None and fold.divide and decision.step:
            running.divide(int(decision.accepted.sum()))
        return self._outcome(decision, running, update_norm(decision, gramian), gramian)

    def _combine(self, batch: Any, size: int, rule: RowRule) -> Outcome:
        gradients = [self._gradient(batch, i, size) for i in range(self.microbatches)]
        rows = self._rows(gradients)
        used = [[part is not None for part in gradient] for gradient in gradients]
        del gradients  # the rows are copies
        gramian = _on_cpu(rows.gramian())
        result = aggregate(rule, rows, gramian)
        taken = [used[i] for i in result.decision.accepted.nonzero().flatten().tolist()]
        update = RunningVector()
        # A parameter that no accepted microbatch uses keeps no gradient, as after a backward.
        update.tensors = [
            result.update.get(name) if any(row[j] for row in taken) else None
            for j, name in enumerate(self.parameters)
        ]
        norm = math.sqrt(self._products(update.tensors, [])[0])
        outcome = self._outcome(result.decision, update, norm, gramian)
        outcome.scalars = result.scalars
        return outcome

    def _outcome(
        self, decision: Decision, running: RunningVector, norm: float, gramian: Gramian | None
    ) -> Outcome:
        update = running if decision.step else None
        return Outcome(decision, self._losses, self._accuracies, update, norm, gramian)

    def _gradient(self, batch: Any, i: int, size: int) -> Gradient:
        """Differentiate microbatch i; give its gradient, nothing when its loss is not finite."""
        part = pytree.tree_map(lambda leaf: leaf[i * size : (i + 1) * size], batch)
        parameters = list(self.parameters.values())
        for parameter in parameters:
            parameter.grad = None
        with self.autocast():
            loss, accuracy = loss_and_accuracy(self.model, self.loss, part, size)
        self._losses.append(loss.item())
        self._accuracies.append(accuracy)
        gradient: Gradient = []
        if math.isfinite(self._losses[-1]):
            check_differentiable(loss)
            loss.backward()
            # Take the gradients over instead of copying them.
            gradient = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        # Only now: the backward of BatchNorm still refers to the running statistics.
        self.statistics.collect(finite=bool(gradient))
        return gradient

    def _rows(self, gradients: list[Gradient]) -> GradientRows:
        """Stack the gradients; a microbatch without one (its loss is not finite) is NaN."""
        named = {}
        for j, (name, parameter) in enumerate(self.parameters.items()):
            rows = []
            for gradient in gradients:
                row = gradient[j] if gradient else None
                missing = 0.0 if gradient else math.nan
                rows.append(torch.full_like(parameter, missing) if row is None else row)
            named[name] = torch.stack([row.detach() for row in rows])
        return GradientRows(named, engine="loop")


def update_norm(decision: Decision, gramian: Gramian) -> float:
    """Give the norm of the combined gradient, `sqrt(w^T K w)`.

    Args:
        decision: Holds the weights w; rejected micro-gradients may be NaN.
        gramian: Inner products K of the micro-gradients.
    """
    weights = decision.weights[decision.accepted]
    matrix = gramian.matrix[decision.accepted][:, decision.accepted]
    return math.sqrt(max(float(weights @ matrix @ weights), 0.0))


def _on_cpu(gramian: Gramian) -> Gramian:
    """Decisions are taken on the CPU, wherever the gradients are."""
    layers = {name: layer.cpu() for name, layer in gramian.layers.items()}
    return Gramian(gramian.matrix.cpu(), layers, engine=gramian.engine)


def _pair_gramian(squares: list[float], dot: float) -> Gramian:
    both = all(map(math.isfinite, squares))
    dot = dot if both else math.nan
    matrix = torch.tensor([[squares[0], dot], [dot, squares[1]]], dtype=torch.float64)
    return Gramian(matrix, engine="loop")
