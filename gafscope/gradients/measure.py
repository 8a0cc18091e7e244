"""The two public measurements, gradient rows and Gramian, and the choice of the engine.

`run_engine`, `compute_rows` and `measure` serve the weighted gradient (`weighted.py`) as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from gafscope import geometry
from gafscope.errors import UserError, unknown_name
from gafscope.gradients.budget import Plan, plan
from gafscope.gradients.isolation import untouched
from gafscope.gradients.loop import loop_rows
from gafscope.gradients.loss import Loss
from gafscope.gradients.problem import Problem, make_problem
from gafscope.gradients.types import GradientRows, Gramian, flat_rows, sum_of_layers
from gafscope.gradients.vmap import vmap_rows

T = TypeVar("T")
Rows = dict[str, Tensor]
_ENGINES: dict[str, Callable[[Problem, int, int], tuple[Rows, Tensor]]] = {
    "loop": loop_rows,
    "vmap": vmap_rows,
}
# From this many samples on, one microbatch keeps the processor busy and vmap only adds overhead.
_LOOP_FROM = 16


def microbatch_gradients(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    microbatches: int | None = None,
    *,
    engine: str = "auto",
    memory_budget: int | None = None,
    seed: int | None = None,
) -> GradientRows:
    """Compute the gradient of each microbatch's mean loss, `g_i = d/dw mean_j loss_ij`.

    The model is left exactly as it was: parameters, `.grad`, buffers, BatchNorm's running
    statistics, training mode and random state.

    Args:
        model: Any module, in training or evaluation mode, on CPU or CUDA.
        loss: `(model, batch) -> (B,)` losses, or their mean; see `supervised`.
        batch: A pytree of tensors with n samples in their first dimension.
        microbatches: k, the number of rows; must divide n. None: one row a sample.
        engine: "loop" (always right, one backward a microbatch), "vmap" (vectorised), or
            "auto": vmap for microbatches under 16 samples, loop for larger ones or where vmap
            cannot follow the model.
        memory_budget: Bytes that may be used beside model and batch; vmap then works in chunks.
        seed: Seed of the dropout masks, of which every microbatch draws its own. None takes it
            from torch's global random state, which is not advanced. One seed gives one result
            for each engine; vmap draws other masks than the loop, and other ones in chunks.

    Returns:
        (k, ...) rows for every trainable parameter; zeros where one is unused.

    Raises:
        UserError: If an argument is wrong, nothing is trainable, the loss has a wrong shape,
            the budget is too small, or single samples are asked of BatchNorm in training mode.

    Example:
        >>> loss = lambda model, batch: model(batch).square().squeeze(1)
        >>> rows = microbatch_gradients(nn.Linear(3, 1), loss, torch.randn(8, 3), microbatches=4)
        >>> rows.named["weight"].shape
        torch.Size([4, 1, 3])
    """
    problem = make_problem(model, loss, batch, microbatches, seed)

    def work(name: str, sizes: Plan) -> Rows:
        return compute_rows(problem, name, sizes.chunk, 0, problem.k)[0]

    named, used, notes = run_engine(problem, engine, memory_budget, True, work)
    return GradientRows(named=named, engine=used, notes=notes)


def gramian(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    microbatches: int | None = None,
    *,
    layers: bool = True,
    engine: str = "auto",
    memory_budget: int | None = None,
    seed: int | None = None,
) -> Gramian:
    """Compute the inner products of all micro-gradients, `K[i, j] = <g_i, g_j>`.

    Args:
        model: As in `microbatch_gradients`.
        loss: As in `microbatch_gradients`.
        batch: As in `microbatch_gradients`.
        microbatches: As in `microbatch_gradients`.
        layers: Keep the matrix of each parameter as well.
        engine: As in `microbatch_gradients`.
        memory_budget: Bytes that may be used beside model and batch. Where the rows do not fit
            they are computed block by block, later blocks several times.
        seed: As in `microbatch_gradients`.

    Returns:
        The Gramian in float64, exact enough for cosine distances of 1e-6.

    Raises:
        UserError: As in `microbatch_gradients`.

    Example:
        >>> loss = lambda model, batch: model(batch).square().squeeze(1)
        >>> gramian(nn.Linear(3, 1), loss, torch.randn(8, 3)).matrix.shape
        torch.Size([8, 8])
    """
    problem = make_problem(model, loss, batch, microbatches, seed)

    def work(name: str, sizes: Plan) -> Rows:
        return measure(problem, name, sizes).layers

    matrices, used, notes = run_engine(problem, engine, memory_budget, False, work)
    return Gramian(sum_of_layers(matrices), matrices if layers else {}, used, notes)


@final
@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass over all microbatches gave.

    Attributes:
        layers: Parameter name -> (k, k) float64 Gramian.
        losses: (k,), the mean losses.
        combine: (k,) weights -> parameter name -> `sum_i w_i g_i`, without the rows of weight 0.
            From the rows where all are held, else from a second pass; call it in `untouched`.
    """

    layers: Rows
    losses: Tensor
    combine: Callable[[Tensor], Rows]


def run_engine(
    problem: Problem,
    engine: str,
    memory_budget: int | None,
    whole: bool,
    work: Callable[[str, Plan], T],
) -> tuple[T, str, tuple[str, ...]]:
    """Do the work with the wished engine; "auto" turns to the loop where vmap fails.

    Args:
        problem: The measurement.
        engine: "loop", "vmap" or "auto".
        memory_budget: Bytes; None for no limit.
        whole: All rows are wanted together.
        work: Called with an engine's name and the sizes that keep it within the budget.

    Returns:
        What the work gave, the engine that did it, and notes for the reader.

    Raises:
        UserError: If there is no such engine, vmap was asked for and fails, or the budget is
            too small.
    """
    if engine not in (*_ENGINES, "auto"):
        raise unknown_name("engine", engine, [*_ENGINES, "auto"])
    name = engine
    if engine == "auto":
        name = "loop" if problem.u >= _LOOP_FROM or problem.k == 1 else "vmap"
    with untouched(problem.model):
        if name == "vmap":
            try:
                return work(name, plan(problem, memory_budget, True, whole)), name, ()
            except UserError:
                raise
            except RuntimeError as error:
                first_line = (str(error).strip() or repr(error)).splitlines()[0]
                reason = textwrap.shorten(first_line, 200, placeholder=" ...").rstrip(".")
                if engine == "vmap":
                    raise UserError(
                        f"engine='vmap' cannot differentiate this model: {reason}. "
                        "Use engine='loop', which takes any model."
                    ) from error
            notes = (f"vmap cannot differentiate this model ({reason}); the loop did.",)
            return work("loop", plan(problem, memory_budget, False, whole)), "loop", notes
        return work(name, plan(problem, memory_budget, False, whole)), name, ()


def compute_rows(
    problem: Problem, engine: str, chunk: int, start: int, stop: int
) -> tuple[Rows, Tensor]:
    """Differentiate microbatches start..stop-1, at most `chunk` at a time.

    Args:
        problem: The measurement.
        engine: "loop" or "vmap".
        chunk: As in `Plan`.
        start: First microbatch.
        stop: One past the last.

    Returns:
        Parameter name -> (stop - start, *parameter.shape), and the mean losses, (stop - start,).
    """
    if chunk >= stop - start:
        return _ENGINES[engine](problem, start, stop)
    named = {
        name: torch.empty(stop - start, *p.shape, dtype=p.dtype, device=p.device)
        for name, p in problem.parameters.items()
    }
    losses = []
    for first in range(start, stop, chunk):
        last = min(first + chunk, stop)
        part, part_losses = _ENGINES[engine](problem, first, last)
        losses.append(part_losses)
        for name, rows in part.items():
            named[name][first - start : last - start] = rows
    return named, torch.cat(losses)


def measure(problem: Problem, engine: str, sizes: Plan) -> Measured:
    """Compute each layer's Gramian, from all rows or from pairs of row blocks.

    Args:
        problem: The measurement.
        engine: "loop" or "vmap".
        sizes: How many rows may be held; of blocks, two are held at a time.

    Returns:
        Gramians, losses, and how to combine the rows.
    """
    k, block = problem.k, sizes.block
    if block >= k:
        rows, losses = compute_rows(problem, engine, sizes.chunk, 0, k)
        layers = {name: geometry.gramian(flat_rows(row)) for name, row in rows.items()}
        return Measured(layers, losses, GradientRows(rows).combine)
    layers = {
        name: torch.empty(k, k, dtype=torch.float64, device=p.device)
        for name, p in problem.parameters.items()
    }
    all_losses = []
    for a in range(0, k, block):
        a_end = min(a + block, k)
        rows, losses = compute_rows(problem, engine, sizes.chunk, a, a_end)
        all_losses.append(losses)
        for name, row in rows.items():
            layers[name][a:a_end, a:a_end] = geometry.gramian(flat_rows(row))
        for b in range(a_end, k, block):
            b_end = min(b + block, k)
            others, _ = compute_rows(problem, engine, sizes.chunk, b, b_end)
            for name, row in rows.items():
                cross = geometry.cross_gramian(flat_rows(row), flat_rows(others[name]))
                layers[name][a:a_end, b:b_end] = cross
                layers[name][b:b_end, a:a_end] = cross.T
    layers = {name: geometry.blank_rows(matrix) for name, matrix in layers.items()}
    combine = partial(_combine_again, problem, engine, sizes.chunk)
    return Measured(layers, torch.cat(all_losses), combine)


def _combine_again(problem: Problem, engine: str, chunk: int, weights: Tensor) -> Rows:
    """Compute the weighted rows once more, and add them up chunk by chunk."""
    wide = {
        name: torch.zeros_like(p.detach(), dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in problem.parameters.items()
    }
    # In the chunks of the first pass, since vmap draws the dropout masks of a chunk together.
    for start in range(0, problem.k, chunk):
        stop = min(start + chunk, problem.k)
        if weights[start:stop].any():
            rows, _ = compute_rows(problem, engine, chunk, start, stop)
            for name, part in GradientRows(rows).combine(weights[start:stop]).items():
                wide[name] += part
    return {name: wide[name].to(p.dtype) for name, p in problem.parameters.items()}
