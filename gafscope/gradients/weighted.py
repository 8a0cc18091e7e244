"""A weighted sum of micro-gradients whose weights are decided on their Gramian.

Shape legend: k microbatches (or samples).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from gafscope import geometry
from gafscope.errors import UserError
from gafscope.gradients.choice import run_engine
from gafscope.gradients.isolation import kept_buffers, seed_everything, untouched
from gafscope.gradients.loss import Loss, mean_loss
from gafscope.gradients.measured import Rows, measure
from gafscope.gradients.problem import Problem, make_problem
from gafscope.gradients.types import Gramian, sum_of_layers


@final
@dataclass(frozen=True, eq=False)
class WeightedGradient:
    """What `weighted_gradient` gives.

    Attributes:
        gramian: Inner products of the k micro-gradients. One whose loss is NaN or infinite
            counts as not finite here, even where its gradient is finite.
        losses: (k,) float64, the mean loss of each microbatch.
        weights: (k,), what `weigh` returned; None where it skipped.
        named: Parameter name -> `sum_i w_i g_i`, in the parameter's shape and type, without the
            parameters that the loss does not use; None where `weigh` skipped.
    """

    gramian: Gramian
    losses: Float64[Tensor, " k"]
    weights: Tensor | None
    named: dict[str, Tensor] | None


def weighted_gradient(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    weigh: Callable[[Gramian], Tensor | None],
    microbatches: int | None = None,
    *,
    layers: bool = False,
    engine: str = "auto",
    memory_budget: int | None = None,
    seed: int | None = None,
) -> WeightedGradient:
    """Compute the Gramian of the micro-gradients, ask for weights, and add up `sum_i w_i g_i`.

    The model is left exactly as it was, as by `microbatch_gradients`.

    Args:
        model: As in `microbatch_gradients`.
        loss: As in `microbatch_gradients`.
        batch: As in `microbatch_gradients`.
        weigh: Gramian -> (k,) weights, or None for no combination. A micro-gradient of weight 0
            is left out, not multiplied: 0 * nan would be nan.
        microbatches: As in `microbatch_gradients`.
        layers: Give the Gramian of each parameter to `weigh` as well.
        engine: As in `microbatch_gradients`.
        memory_budget: As in `gramian`. Where the rows do not fit, those of non-zero weight are
            computed a second time.
        seed: As in `microbatch_gradients`.

    Returns:
        The Gramian, the losses, the weights and the combination.

    Raises:
        UserError: As in `microbatch_gradients`, or if there is not one weight a microbatch.
    """
    problem = make_problem(model, loss, batch, microbatches, seed)
    measured, used, notes = run_engine(
        problem, engine, memory_budget, False, lambda name, sizes: measure(problem, name, sizes)
    )
    losses = measured.losses.double()
    matrices = _blank(measured.layers, losses)
    gramian = Gramian(sum_of_layers(matrices), matrices if layers else {}, used, notes)
    weights = weigh(gramian)
    if weights is None:
        return WeightedGradient(gramian, losses, None, None)
    if tuple(weights.shape) != (problem.k,):
        raise UserError(
            f"There must be one weight a microbatch, shape ({problem.k},), but these have shape "
            f"{tuple(weights.shape)}."
        )
    with untouched(problem.model):
        named = _without_unused(problem, measured.combine(weights), weights)
    return WeightedGradient(gramian, losses, weights, named)


def _blank(layers: Rows, losses: Tensor) -> Rows:
    """Count micro-gradients whose losses are not finite as not finite."""
    spoilt = ~losses.isfinite()
    if not spoilt.any():
        return layers
    mark = torch.where(spoilt, torch.nan, 0.0).diag()
    return {name: geometry.blank_rows(K + mark.to(K.device)) for name, K in layers.items()}


def _without_unused(problem: Problem, named: Rows, weights: Tensor) -> Rows:
    """Leave out the parameters that the loss does not use, as `backward` leaves their `.grad`.

    A zero in their place would let weight decay and momentum move them.
    """
    silent = [name for name, gradient in named.items() if not gradient.any()]
    if not silent or not weights.any():
        return named
    i = int(weights.nonzero()[0])
    with kept_buffers(problem.model):
        seed_everything(problem.model, problem.seed + i)
        loss = mean_loss(problem.loss(problem.model, problem.microbatch(i)), problem.u)
        parameters = [problem.parameters[name] for name in silent]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    unused = {name for name, gradient in zip(silent, found, strict=True) if gradient is None}
    return {name: gradient for name, gradient in named.items() if name not in unused}
