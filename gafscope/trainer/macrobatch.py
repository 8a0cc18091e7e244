"""One macrobatch: micro-gradients, a decision, and the update that follows.

Sequential rules stream: only the running vector and the newest gradient exist. Any other rule,
and every step whose Gramian by layer is recorded, holds the k gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch

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
from gafscope.gradients import Gramian
from gafscope.gradients.problem import batch_size
from gafscope.gradients.running import Gradient, RunningVector
from gafscope.trainer.microbatch import Microbatches


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
        microbatches: Differentiates them.
    """

    microbatches: Microbatches
    _products: geometry.StreamingProducts = field(default_factory=geometry.StreamingProducts)

    def run(self, batch: Any, rule: Rule, step: int, layers: bool) -> Outcome:
        """Differentiate a macrobatch and decide.

        Args:
            batch: A pytree of tensors with k * u samples.
            rule: The rule.
            step: The step.
            layers: Compute the Gramian by layer, which holds all k gradients.

        Returns:
            The outcome. Parameters are untouched and every `.grad` is None.

        Raises:
            UserError: If the loss returns a wrong shape, or a rule of the user's own a decision
                that contradicts itself.
        """
        self.microbatches.begin()
        gradients = self._gradients(batch, step)
        fold: Fold | None = getattr(rule, "fold", None)
        if isinstance(rule, RowRule):
            return self._combine(list(gradients), rule)
        if fold is not None and not layers:
            outcome = self._stream(gradients, fold)
            if isinstance(rule, Observing):
                rule.observe(outcome.decision)
            return outcome
        return self._hold(list(gradients), rule, fold, layers)

    def _gradients(self, batch: Any, step: int) -> Iterator[Gradient]:
        k = self.microbatches.count
        for i in range(k):
            yield self.microbatches.gradient(batch, step, i, batch_size(batch) // k)
        # What a rule of the user's own draws does not depend on what the model drew.
        self.microbatches.draw_for(step, k)

    def _stream(self, gradients: Iterable[Gradient], fold: Fold) -> Outcome:
        visitor, running = Visitor(fold, self.microbatches.count), RunningVector()
        squares, dot = [], math.nan
        for gradient in gradients:
            square, dot = self._products(gradient, running.tensors) if gradient else (math.nan,) * 2
            squares.append(square)
            if factors := visitor.visit(square, dot):
                running.fold(gradient, *factors)
        decision = visitor.decision()
        if decision.step:
            running.divide(visitor.divisor)
        # With two microbatches the running vector at the second visit is the first gradient
        # (or nothing, if that was zero), so the whole Gramian is known at no cost.
        gramian = _pair_gramian(squares, dot) if len(squares) == 2 else None
        return self._outcome(decision, running, visitor.norm, gramian)

    def _hold(
        self, gradients: list[Gradient], rule: Weighting, fold: Fold | None, layers: bool
    ) -> Outcome:
        if layers:
            gramian = _on_cpu(self.microbatches.rows(gradients).gramian())
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

    def _combine(self, gradients: list[Gradient], rule: RowRule) -> Outcome:
        rows = self.microbatches.rows(gradients)
        used = [[part is not None for part in gradient] for gradient in gradients]
        gradients.clear()  # the rows are copies
        gramian = _on_cpu(rows.gramian())
        result = aggregate(rule, rows, gramian)
        taken = [used[i] for i in result.decision.accepted.nonzero().flatten().tolist()]
        update = RunningVector()
        # A parameter that no accepted microbatch uses keeps no gradient, as after a backward.
        update.tensors = [
            result.update.get(name) if any(row[j] for row in taken) else None
            for j, name in enumerate(self.microbatches.parameters)
        ]
        norm = math.sqrt(self._products(update.tensors, [])[0])
        outcome = self._outcome(result.decision, update, norm, gramian)
        outcome.scalars = result.scalars
        return outcome

    def _outcome(
        self, decision: Decision, running: RunningVector, norm: float, gramian: Gramian | None
    ) -> Outcome:
        update = running if decision.step else None
        made = self.microbatches
        return Outcome(decision, made.losses, made.accuracies, update, norm, gramian)


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
