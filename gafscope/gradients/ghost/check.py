"""The self-check when a plan is first used: nothing that it would get wrong passes.

On three samples, in their order and in reverse, it makes sure that a sample's loss depends on
that sample's positions of every tensor only, which also settles how samples are ordered in merged
dimensions; and it compares rows and inner products, parameter by parameter, with gradients that
autograd computes in the plain way on the same graph. On the whole batch it compares all losses, and
two rows, with those of their microbatches alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils import _pytree as pytree

from gafscope.gradients.ghost.ledger import Ledger
from gafscope.gradients.ghost.places import Place, Unsupported
from gafscope.gradients.ghost.plan import Call, Plan
from gafscope.gradients.ghost.products import Products
from gafscope.gradients.ghost.run import Pass
from gafscope.gradients.ghost.trace import NoDropout
from gafscope.gradients.isolation import kept_buffers, random_state, seed_everything
from gafscope.gradients.loop import loop_rows
from gafscope.gradients.loss import mean_loss
from gafscope.gradients.problem import Problem

_SAMPLES = 3
# Samples that are tried for a finite gradient.
_CANDIDATES = 32


@final
class Coupled(Exception):
    """The samples of a batch depend on each other, so that none has a gradient of its own."""


@final
class Mismatch(Unsupported):
    """Something comes out differently from autograd, for a reason that nobody knows."""


@final
class Unverified(Unsupported):
    """Nothing is wrong with the model, but this batch is not fit to check it on."""


def checked(problem: Problem, calls: tuple[Call, ...], decides: bool) -> Plan:
    """Check a plan on a few samples.

    Args:
        problem: The measurement.
        calls: Its calls.
        decides: The forward pass looks at values of the batch, and may do another thing next time.

    Returns:
        The plan, with the order of samples in merged dimensions found out.

    Raises:
        Coupled: If the samples depend on each other.
        Unsupported: If anything comes out differently from autograd's gradients.
    """
    chosen = _finite_samples(problem)
    certain, random = not decides, False
    # A model that sorts its samples, and was given them sorted, is found out in reverse.
    for order in (chosen, chosen[::-1]):
        batch = problem.samples(order)
        seed_everything(problem.model, problem.seed)
        before = random_state(problem.model)
        with _passed(problem, calls, batch) as (run, losses, _):
            after = random_state(problem.model)
            random = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
            calls, seen = _ordered(calls, run.outputs, losses)
            different = 1 < len(set(losses.tolist())) == len(set(chosen))
            certain = certain and seen and different
    seed_everything(problem.model, problem.seed)
    with _passed(problem, calls, problem.samples(chosen)) as (run, losses, ledger):
        truth = [_gradients(problem, losses[i]) for i in (0, _SAMPLES - 1)]
        run.backward(losses, keep_graph=True)
        grams = ledger.grams()
        dtype = next(iter(problem.parameters.values())).dtype
        tolerance = _tolerance(dtype, run.halves)
        rows = [ledger.combine(_unit(i, problem)) for i in (0, _SAMPLES - 1)]
        for name in problem.parameters:
            for row, right in zip(rows, truth, strict=True):
                _require_close(name, row[name], right, tolerance)
            _require_products(name, grams[name], (0, _SAMPLES - 1), truth, tolerance)
    if random:
        _check_alone(problem, chosen, tolerance)
    return Plan(calls, random, certain, tolerance)


def verify(problem: Problem, tolerance: float, grams: dict[str, Tensor], losses: Tensor) -> None:
    """Compare losses, and two rows, of a measurement with those of their microbatches alone.

    Args:
        problem: The measurement, in which nothing is random.
        tolerance: The relative difference that rounding explains.
        grams: Parameter name -> (k, k) Gramian.
        losses: (k,) mean losses.

    Raises:
        Coupled: If a loss is another one when its microbatch comes alone.
        Unsupported: If the inner products differ.
    """
    spoilt = sum(gram.diagonal().isfinite().logical_not() for gram in grams.values())
    finite = (losses.isfinite() & (torch.as_tensor(spoilt, device=losses.device) == 0)).nonzero()
    if not len(finite):
        return
    for i in finite.flatten().tolist():
        seed_everything(problem.model, problem.seed + i)
        with kept_buffers(problem.model):
            loss = mean_loss(problem.loss(problem.model, problem.microbatch(i)), problem.u)
        _require_same_loss(loss.detach(), losses[i], tolerance)
    chosen = int(finite[0]), int(finite[-1])
    alone = [loop_rows(problem, i, i + 1) for i in chosen]
    truth = [{name: row[0] for name, row in rows.items()} for rows, _ in alone]
    for name, gram in grams.items():
        _require_products(name, gram, chosen, truth, tolerance)


def _check_alone(problem: Problem, chosen: list[int], tolerance: float) -> None:
    """See, without dropout, that a sample's loss is the same when it comes alone."""
    with NoDropout(), kept_buffers(problem.model):
        before = random_state(problem.model)
        together = problem.loss(problem.model, problem.samples(chosen)).detach()[-1]
        after = random_state(problem.model)
    if any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        return  # It draws in some other way, and nothing can be compared.
    with NoDropout(), kept_buffers(problem.model):
        alone = problem.loss(problem.model, problem.samples(chosen[-1:])).detach().flatten()[0]
    _require_same_loss(alone, together, tolerance)


def _require_same_loss(alone: Tensor, together: Tensor, tolerance: float) -> None:
    if not (alone - together).abs() <= tolerance * (1 + alone.abs()):
        raise Coupled(
            f"a loss is {alone.item():.6g} when its sample comes alone and "
            f"{together.item():.6g} in the batch"
        )


@contextmanager
def _passed(
    problem: Problem, calls: tuple[Call, ...], batch: Any
) -> Iterator[tuple[Pass, Tensor, Ledger]]:
    ledger = Ledger(problem.parameters, calls, _SAMPLES, Products("float64"), keep=True)
    run = Pass(problem, calls, _SAMPLES, _SAMPLES, ledger)
    try:
        yield run, run.forward(batch), ledger
    finally:
        run.release()
        ledger.release()


def _finite_samples(problem: Problem) -> list[int]:
    """Choose samples with finite gradients; with others nothing can be compared."""
    n = problem.k * problem.u
    single = pytree.tree_map(lambda leaf: leaf.flatten(0, 1)[:, None], problem.batch)
    samples = replace(problem, batch=single, k=n, u=1)
    found: list[int] = []
    for i in range(min(n, _CANDIDATES)):
        try:
            rows, _ = loop_rows(samples, i, i + 1)
        except ValueError as error:
            if problem.u == 1:
                raise
            # BatchNorm, for one, takes microbatches but no single samples.
            raise Unsupported(f"a sample alone is an error: {error}") from error
        if all(row.isfinite().all() for row in rows.values()):
            found.append(i)
        if len(found) == _SAMPLES:
            break
    if not found:
        raise Unverified("no sample's gradient is finite, so that nothing can be checked")
    return [found[i % len(found)] for i in range(_SAMPLES)]


def _ordered(
    calls: tuple[Call, ...],
    outputs: list[tuple[int, int, torch.Size, GradientEdge]],
    losses: Tensor,
) -> tuple[tuple[Call, ...], bool]:
    """See that a sample's loss reaches its own positions only; turn places that need it.

    Returns:
        The calls, and whether every output received a gradient that could tell.
    """
    edges = [edge for _, _, _, edge in outputs]
    places = {index: list(calls[index].outputs) for index, *_ in outputs}
    told = [False] * len(outputs)
    for sample in (0, _SAMPLES - 1):
        if not edges:
            break
        gradients = torch.autograd.grad(losses[sample], edges, retain_graph=True, allow_unused=True)
        for o, ((index, j, shape, _), gradient) in enumerate(zip(outputs, gradients, strict=True)):
            place = places[index][j]
            if place is None or gradient is None or not gradient.any():
                continue
            told[o] = True
            gradient = gradient.view(shape)
            reached = _reached(gradient, place)
            if reached != [sample] and place.merged and not place.minor:
                place = places[index][j] = place.turned()
                reached = _reached(gradient, place)
            if len(reached) > 1:
                raise Coupled(f"one sample's loss depends on others in '{calls[index].name}'")
            if reached != [sample]:
                raise Unsupported(f"the samples are in another order in '{calls[index].name}'")
    turned = tuple(
        replace(call, outputs=tuple(places.get(index, call.outputs)))
        for index, call in enumerate(calls)
    )
    return tuple(_inputs_alike(call) for call in turned), all(told)


def _inputs_alike(call: Call) -> Call:
    """Order merged dimensions of the inputs as those of the outputs."""
    if not any(place is not None and place.minor for place in call.outputs):
        return call
    inputs = (place.turned() if place and place.merged else place for place in call.inputs)
    return replace(call, inputs=tuple(inputs))


def _reached(gradient: Tensor, place: Place) -> list[int]:
    rows = place.rows_first(gradient, _SAMPLES, _SAMPLES)
    return [i for i, row in enumerate(rows) if row.any()]


def _tolerance(dtype: torch.dtype, halves: bool) -> float:
    """Give the relative difference that rounding explains."""
    if halves:
        return 5e-2
    return 1e-6 if dtype == torch.float64 else 2e-3


def _gradients(problem: Problem, loss: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        loss, [*problem.parameters.values()], retain_graph=True, materialize_grads=True,
        allow_unused=True,
    )  # fmt: skip
    found = {
        name: gradient.to_dense()
        for name, gradient in zip(problem.parameters, gradients, strict=True)
    }
    if not all(gradient.isfinite().all() for gradient in found.values()):
        raise Unverified("the gradients of the samples to check on are not finite")
    return found


def _size(gradients: dict[str, Tensor]) -> Tensor:
    """Give the norm of a whole gradient, against which small layers' errors are judged."""
    norms = [gradient.double().norm().cpu() for gradient in gradients.values()]
    return torch.stack(norms).norm()


def _require_close(name: str, row: Tensor, truth: dict[str, Tensor], tolerance: float) -> None:
    right = truth[name].double()
    allowed = tolerance * (right.norm().cpu() + 1e-2 * _size(truth))
    if not (row.double() - right).norm().cpu() <= allowed:
        raise Mismatch(f"the gradient of '{name}' does not match autograd's")


def _require_products(
    name: str,
    gram: Tensor,
    rows: tuple[int, int],
    truth: list[dict[str, Tensor]],
    tolerance: float,
) -> None:
    sizes = [right[name].double().norm().cpu() + 1e-2 * _size(right) for right in truth]
    for i, a, size_a in zip(rows, truth, sizes, strict=True):
        for j, b, size_b in zip(rows, truth, sizes, strict=True):
            product = (a[name].double() * b[name].double()).sum()
            if not (gram[i, j] - product).abs().cpu() <= 3 * tolerance * size_a * size_b:
                raise Mismatch(f"the inner products of '{name}' do not match autograd's")


def _unit(i: int, problem: Problem) -> Tensor:
    device = next(iter(problem.parameters.values())).device
    return torch.nn.functional.one_hot(torch.tensor(i, device=device), _SAMPLES).double()
