"""The ghost engine: Gramians of samples or small microbatches from one forward and backward.

No gradient row is stored and no weight gradient computed for the Gramian alone. Ghost norms
are due to Goodfellow 2015 (arXiv 1510.01799), ghost inner products to Li et al. 2021
(arXiv 2110.05679).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gafscope import geometry
from gafscope.gradients.ghost.check import Coupled, Unverified, checked, verify
from gafscope.gradients.ghost.ledger import Ledger
from gafscope.gradients.ghost.places import Unsupported
from gafscope.gradients.ghost.plan import Plan, compare, survey
from gafscope.gradients.ghost.products import Products
from gafscope.gradients.ghost.run import Pass, PathChanged
from gafscope.gradients.isolation import seed_everything
from gafscope.gradients.problem import Problem

# What is remembered of models, so that surveys and checks run once.
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Any, Known]] = weakref.WeakKeyDictionary()
_KNOWN_A_MODEL = 16
_PLAIN = (bool, int, float, str)


@final
@dataclass(frozen=True, eq=False)
class Ghost:
    """What a pass gave.

    Attributes:
        layers: Parameter name -> (k, k) float64 Gramian.
        losses: (k,) mean losses of the microbatches.
        combine: (k,) weights -> parameter name -> `sum_i w_i g_i`, without the rows of weight 0.
        random: The model draws random numbers (dropout).
        notes: What the reader should know.
    """

    layers: dict[str, Tensor]
    losses: Tensor
    combine: Callable[[Tensor], dict[str, Tensor]]
    random: bool
    notes: tuple[str, ...] = ()


def ghost(problem: Problem, products: Products, combines: bool) -> Ghost:
    """Measure in one pass.

    Args:
        problem: The measurement.
        products: How to multiply.
        combines: Keep what `combine` needs.

    Returns:
        Gramians, losses, and how to combine the rows.

    Raises:
        Unsupported: If the model cannot be taken exactly.
        Coupled: If its samples depend on each other.
    """
    known = _known(problem)
    try:
        return _verified(problem, known, products, combines)
    except PathChanged:
        # Other lengths, or what a first call had cached: look again, once.
        known.plan, known.verified = None, set()
        return _verified(problem, known, products, combines)


@final
@dataclass(eq=False)
class Known:
    """What is remembered of a model with a loss and a kind of batch.

    Attributes:
        plan: The plan, or why there is none.
        verified: The shapes (k, u) of measurements that were compared with rows alone.
        loss: The loss, whose id may be another's once it is gone.
    """

    loss: weakref.ref[Any] | None = None
    plan: Plan | Unsupported | Coupled | None = None
    verified: set[tuple[int, int]] = field(default_factory=set)


def _known(problem: Problem) -> Known:
    """Find what is remembered; the oldest is forgotten first."""
    try:
        loss, key = weakref.ref(problem.loss), _kind(problem)
    except TypeError:  # a loss without attributes, or that cannot be referred to
        return Known()
    remembered = _KNOWN.setdefault(problem.model, {})
    if key not in remembered or remembered[key].loss is not loss:
        while len(remembered) >= _KNOWN_A_MODEL:
            del remembered[next(iter(remembered))]
        remembered[key] = Known(loss)
    return remembered[key]


def _verified(problem: Problem, known: Known, products: Products, combines: bool) -> Ghost:
    """Measure, and on first use compare two rows with gradients of their own."""
    plan = known.plan if known.plan is not None else _make_plan(problem)
    lasting = not isinstance(plan, Unverified) and getattr(plan, "certain", True)
    known.plan = plan if lasting else None
    if not isinstance(plan, Plan):
        raise type(plan)(str(plan))
    result = _measure(problem, plan, products, combines)
    shape = problem.k, problem.u
    if not plan.random and (shape not in known.verified or not lasting):
        tolerance = max(plan.tolerance, products.tolerance)
        verify(problem, tolerance, result.layers, result.losses)
        known.verified.add(shape)
    return result


def _make_plan(problem: Problem) -> Plan | Unsupported | Coupled:
    try:
        seed_everything(problem.model, problem.seed)
        two, _ = survey(problem, 2)
        three, decides = survey(problem, 3)
        if [call.name for call in two] != [call.name for call in three]:
            two, _ = survey(problem, 2)  # the first pass may have filled a cache of the model's
        return checked(problem, compare(two, three), decides)
    except (Unsupported, Coupled) as error:
        # Without the traceback, whose frames hold tensors.
        kind = Unsupported if isinstance(error, PathChanged) else type(error)
        return kind(str(error))


def _measure(problem: Problem, plan: Plan, products: Products, combines: bool) -> Ghost:
    ledger = Ledger(problem.parameters, plan.calls, problem.k, products, keep=combines)
    run = Pass(problem, plan.calls, problem.k * problem.u, problem.k, ledger)
    try:
        seed_everything(problem.model, problem.seed)
        losses = run.forward(problem.flat)
        # Rows are held while all inputs still are: a part of these is little beside them.
        ledger.limit(run.input_bytes // 4)
        run.backward(losses)
        layers = {name: geometry.blank_rows(gram) for name, gram in ledger.grams().items()}
        means = losses.detach().view(problem.k, -1).mean(1)
        return Ghost(layers, means, ledger.combine, plan.random, _notes(products, ledger))
    finally:
        run.release()
        if not combines:
            ledger.release()


def _notes(products: Products, ledger: Ledger) -> tuple[str, ...]:
    error = ledger.error()
    if error is None:
        return ()
    return (
        f"products in {products.precision}: the cosine distance of the first two rows is off by "
        f"{error:.1e}.",
    )


def _kind(problem: Problem) -> Any:
    """Give what a plan depends on."""
    leaves, structure = pytree.tree_flatten(problem.batch)
    device = next(iter(problem.parameters.values())).device.type
    return (
        id(problem.loss),
        _settings(problem.loss),
        structure,
        tuple((leaf.ndim, leaf.dtype) for leaf in leaves),
        tuple(_settings(module) for module in problem.model.modules()),
        tuple((name, id(p)) for name, p in problem.parameters.items()),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
    )


def _settings(owner: Any) -> tuple[Any, ...]:
    """Give the plain attributes (training mode, rates, switches), which may steer a program."""
    return tuple(item for item in vars(owner).items() if isinstance(item[1], _PLAIN))
