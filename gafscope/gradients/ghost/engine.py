"""The ghost engine: Gramians of samples or small microbatches from one forward and backward.

No gradient row is stored and no weight gradient computed for the Gramian alone. Ghost norms
are due to Goodfellow 2015 (arXiv 1510.01799), ghost inner products to Li et al. 2021
(arXiv 2110.05679).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gafscope import geometry
from gafscope.gradients.ghost.check import Coupled, checked
from gafscope.gradients.ghost.ledger import Ledger
from gafscope.gradients.ghost.places import Unsupported
from gafscope.gradients.ghost.plan import Call, compare, survey
from gafscope.gradients.ghost.products import Products
from gafscope.gradients.ghost.run import Pass, PathChanged
from gafscope.gradients.isolation import seed_everything
from gafscope.gradients.problem import Problem

# A model's plans and failures, so that the check runs once; the oldest go first.
_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, Any]] = weakref.WeakKeyDictionary()
_PLANS_A_MODEL = 16


@final
@dataclass(frozen=True, eq=False)
class Ghost:
    """What a pass gave.

    Attributes:
        layers: Parameter name -> (k, k) float64 Gramian.
        losses: (k,) mean losses of the microbatches.
        weights: What `weigh` answered.
        named: Parameter name -> `sum_i w_i g_i`; None where `weigh` gave no weights.
    """

    layers: dict[str, Tensor]
    losses: Tensor
    weights: Tensor | None = None
    named: dict[str, Tensor] | None = None


def ghost(
    problem: Problem,
    products: Products,
    weigh: Callable[[dict[str, Tensor]], Tensor | None] | None = None,
) -> Ghost:
    """Measure, and combine the rows with weights that depend on the Gramian.

    Args:
        problem: The measurement.
        products: How to multiply.
        weigh: From the parameters' Gramians to the rows' weights (k,), or None for no update.

    Returns:
        The Gramians and, with `weigh`, the weighted gradient.

    Raises:
        Unsupported: If the model cannot be taken exactly.
        Coupled: If its samples depend on each other.
    """
    batch, n = problem.flat, problem.k * problem.u
    try:
        return _measure(problem, plan_of(problem), batch, n, products, weigh)
    except PathChanged:
        # Other lengths, or what a first call had cached: look again, once.
        _PLANS.get(problem.model, {}).clear()
        return _measure(problem, plan_of(problem), batch, n, products, weigh)


def plan_of(problem: Problem) -> tuple[Call, ...]:
    """Find or make the plan for a model, a loss and a kind of batch.

    Args:
        problem: The measurement.

    Returns:
        The plan.

    Raises:
        Unsupported: If there is none.
        Coupled: If the samples depend on each other.
    """
    plans = _PLANS.setdefault(problem.model, {})
    key = _kind(problem)
    if key is not None and key in plans:
        made = plans[key]
    else:
        made = _make_plan(problem)
        if key is not None:
            while len(plans) >= _PLANS_A_MODEL:
                del plans[next(iter(plans))]
            plans[key] = made
    if isinstance(made, tuple):
        return made
    raise type(made)(str(made))


def _make_plan(problem: Problem) -> tuple[Call, ...] | Unsupported | Coupled:
    try:
        seed_everything(problem.model, problem.seed)
        two = survey(problem, 2)
        three = survey(problem, 3)
        if [call.name for call in two] != [call.name for call in three]:
            two = survey(problem, 2)  # the first pass may have filled a cache of the model's
        return checked(problem, compare(two, three))
    except (Unsupported, Coupled) as error:
        # Without the traceback, whose frames hold tensors.
        return type(error)(str(error)) if type(error) is not PathChanged else Unsupported(str(error))


def _measure(
    problem: Problem,
    calls: tuple[Call, ...],
    batch: Any,
    n: int,
    products: Products,
    weigh: Callable[[dict[str, Tensor]], Tensor | None] | None,
) -> Ghost:
    ledger = Ledger(problem.parameters, calls, problem.k, products, keep=weigh is not None)
    run = Pass(problem, calls, n, problem.k, ledger)
    try:
        seed_everything(problem.model, problem.seed)
        losses = run.forward(batch)
        run.backward(losses)
        layers = {name: geometry.blank_rows(gram) for name, gram in ledger.grams().items()}
        means = losses.detach().view(problem.k, -1).mean(1)
        if weigh is None:
            return Ghost(layers, means)
        weights = weigh(layers)
        named = None if weights is None else ledger.combine(weights)
        return Ghost(layers, means, weights, named)
    finally:
        run.release()
        ledger.release()


def _kind(problem: Problem) -> Any:
    """Give what a plan depends on; None where it cannot be told."""
    leaves, structure = pytree.tree_flatten(problem.batch)
    device = next(iter(problem.parameters.values())).device.type
    try:
        loss = weakref.ref(problem.loss)
    except TypeError:
        return None
    return (
        loss,
        structure,
        tuple((leaf.ndim, leaf.dtype) for leaf in leaves),
        tuple(module.training for module in problem.model.modules()),
        tuple(problem.parameters),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
    )
