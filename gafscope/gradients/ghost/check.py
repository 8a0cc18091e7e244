"""The self-check before a plan is first used: nothing that it would get wrong passes.

On three samples it compares the rows and the Gramian, parameter by parameter, with gradients
that autograd computes in the plain way on the same graph; it makes sure that no sample's loss
depends on another sample; and it settles how samples are ordered in merged dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from gafscope.gradients.ghost.ledger import Ledger
from gafscope.gradients.ghost.places import Place, Unsupported
from gafscope.gradients.ghost.plan import Call
from gafscope.gradients.ghost.products import Products
from gafscope.gradients.ghost.run import Pass
from gafscope.gradients.isolation import kept_buffers, seed_everything
from gafscope.gradients.problem import Problem

_SAMPLES = 3


@final
class Coupled(Exception):
    """The samples of a batch depend on each other, so that none has a gradient of its own."""


def checked(problem: Problem, calls: tuple[Call, ...]) -> tuple[Call, ...]:
    """Check a plan on the first samples.

    Args:
        problem: The measurement.
        calls: The plan.

    Returns:
        The plan, with the order of samples in merged dimensions found out.

    Raises:
        Coupled: If the samples depend on each other.
        Unsupported: If anything comes out differently from autograd's gradients.
    """
    batch = problem.samples(_wrapped(range(_SAMPLES), problem.k * problem.u))
    seed_everything(problem.model, problem.seed)
    state = torch.random.get_rng_state()
    with _passed(problem, calls, batch) as (run, losses, _):
        random = not torch.equal(state, torch.random.get_rng_state())
        calls = _ordered(calls, run, losses)
        if not random:
            _check_alone(problem, losses)
    seed_everything(problem.model, problem.seed)
    with _passed(problem, calls, batch) as (run, losses, ledger):
        truth = [_gradients(problem, losses[i]) for i in (0, _SAMPLES - 1)]
        run.backward(losses, keep_graph=True)
        _compare(problem, ledger, truth)
    return calls


@contextmanager
def _passed(
    problem: Problem, calls: tuple[Call, ...], batch: object
) -> Iterator[tuple[Pass, Tensor, Ledger]]:
    ledger = Ledger(problem.parameters, calls, _SAMPLES, Products("float64"), keep=True)
    run = Pass(problem, calls, _SAMPLES, _SAMPLES, ledger)
    try:
        yield run, run.forward(batch), ledger
    finally:
        run.release()
        ledger.release()


def _wrapped(indices: range, n: int) -> list[int]:
    return [i % n for i in indices]


def _ordered(calls: tuple[Call, ...], run: Pass, losses: Tensor) -> tuple[Call, ...]:
    """See that a sample's loss reaches its own positions only; turn places that need it."""
    edges = [edge for _, _, edge in run.outputs]
    found: dict[int, list[Place | None]] = {}
    last = _SAMPLES - 1
    for sample in (0, last):
        gradients = torch.autograd.grad(
            losses[sample], edges, retain_graph=True, allow_unused=True
        )
        for (call, j, _), gradient in zip(run.outputs, gradients, strict=True):
            place = found.setdefault(id(call), list(call.outputs))[j]
            if place is None or gradient is None or not gradient.any():
                continue
            if _others_are_zero(gradient, place, sample):
                continue
            if place.merged and not place.minor and _others_are_zero(
                gradient, place.turned(), sample
            ):
                found[id(call)][j] = place.turned()
                continue
            raise Coupled(f"the loss of one sample depends on others through '{call.name}'")
    return tuple(
        replace(call, outputs=tuple(found.get(id(call), call.outputs)), inputs=_like(call, found))
        for call in calls
    )


def _like(call: Call, found: dict[int, list[Place | None]]) -> tuple[Place | None, ...]:
    """Order merged dimensions of the inputs as those of the output."""
    outputs = found.get(id(call), [])
    minor = any(place is not None and place.minor for place in outputs)
    return tuple(
        place.turned() if place is not None and place.merged and minor else place
        for place in call.inputs
    )


def _others_are_zero(gradient: Tensor, place: Place, sample: int) -> bool:
    rows = place.rows_first(gradient, _SAMPLES, _SAMPLES)
    return not any(rows[i].any() for i in range(_SAMPLES) if i != sample)


def _check_alone(problem: Problem, losses: Tensor) -> None:
    """See that a sample's loss is the same when it comes alone (where nothing is random)."""
    last = _SAMPLES - 1
    batch = problem.samples(_wrapped(range(last, last + 1), problem.k * problem.u))
    with kept_buffers(problem.model), torch.no_grad():
        alone = problem.loss(problem.model, batch).flatten()[0]
    together = losses[last].detach()
    if not torch.isfinite(together):
        return
    if (alone - together).abs() > _tolerance(losses) * (1 + together.abs()):
        raise Coupled(
            f"a sample's loss is {alone.item():.6g} when it comes alone and "
            f"{together.item():.6g} in the batch"
        )


def _tolerance(values: Tensor) -> float:
    """Relative differences that rounding explains; autocast computes in half precision."""
    if torch.is_autocast_enabled(values.device.type) or values.dtype in (
        torch.float16,
        torch.bfloat16,
    ):
        return 5e-2
    return 1e-6 if values.dtype == torch.float64 else 2e-3


def _gradients(problem: Problem, loss: Tensor) -> list[Tensor]:
    gradients = torch.autograd.grad(
        loss, [*problem.parameters.values()], retain_graph=True, materialize_grads=True,
        allow_unused=True,
    )  # fmt: skip
    return [gradient.to_dense() for gradient in gradients]


def _compare(problem: Problem, ledger: Ledger, truth: list[list[Tensor]]) -> None:
    """Compare rows and inner products of the first and the last sample with the truth."""
    grams = ledger.grams()
    chosen = (0, _SAMPLES - 1)
    rows = [ledger.combine(_unit(i, problem)) for i in chosen]
    sizes = [sum(g.double().square().sum() for g in row) ** 0.5 for row in truth]
    for index, name in enumerate(problem.parameters):
        for a, i in enumerate(chosen):
            right = truth[a][index]
            tolerance = _tolerance(right)
            error = (rows[a][name] - right).double().norm()
            if not error <= tolerance * (right.double().norm() + 1e-2 * sizes[a]):
                raise Unsupported(f"the gradient of '{name}' does not match autograd's")
            for b, j in enumerate(chosen):
                product = (right.double() * truth[b][index].double()).sum()
                bound = (right.double().norm() + 1e-2 * sizes[a]) * (
                    truth[b][index].double().norm() + 1e-2 * sizes[b]
                )
                if not (grams[name][i, j] - product).abs() <= 3 * tolerance * bound:
                    raise Unsupported(f"the inner products of '{name}' do not match autograd's")


def _unit(i: int, problem: Problem) -> Tensor:
    device = next(iter(problem.parameters.values())).device
    return torch.nn.functional.one_hot(torch.tensor(i, device=device), _SAMPLES).double()
