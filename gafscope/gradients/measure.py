"""The two public measurements, gradient rows and Gramian, and the choice of the engine."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

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

_Rows = dict[str, Tensor]
_ENGINES: dict[str, Callable[[Problem, int, int], _Rows]] = {"loop": loop_rows, "vmap": vmap_rows}
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

    def work(name: str, sizes: Plan) -> _Rows:
        return _rows(problem, name, sizes.chunk, 0, problem.k)

    named, used, notes = _run(problem, engine, memory_budget, True, work)
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

    def work(name: str, sizes: Plan) -> _Rows:
        return _layer_gramians(problem, name, sizes)

    matrices, used, notes = _run(problem, engine, memory_budget, False, work)
    return Gramian(sum_of_layers(matrices), matrices if layers else {}, used, notes)


def _run(
    problem: Problem,
    engine: str,
    memory_budget: int | None,
    whole: bool,
    work: Callable[[str, Plan], _Rows],
) -> tuple[_Rows, str, tuple[str, ...]]:
    """Do the work with the wished engine; "auto" turns to the loop where vmap fails."""
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


def _rows(problem: Problem, engine: str, chunk: int, start: int, stop: int) -> _Rows:
    """Give rows start..stop-1, computed at most `chunk` at a time."""
    if chunk >= stop - start:
        return _ENGINES[engine](problem, start, stop)
    named = {
        name: torch.empty(stop - start, *p.shape, dtype=p.dtype, device=p.device)
        for name, p in problem.parameters.items()
    }
    for first in range(start, stop, chunk):
        last = min(first + chunk, stop)
        for name, rows in _ENGINES[engine](problem, first, last).items():
            named[name][first - start : last - start] = rows
    return named


def _layer_gramians(problem: Problem, engine: str, sizes: Plan) -> _Rows:
    """Fill each layer's Gramian from pairs of row blocks, of which two are held at a time."""
    k, block = problem.k, sizes.block
    if block >= k:
        rows = _rows(problem, engine, sizes.chunk, 0, k)
        return {name: geometry.gramian(flat_rows(row)) for name, row in rows.items()}
    matrices = {
        name: torch.empty(k, k, dtype=torch.float64, device=p.device)
        for name, p in problem.parameters.items()
    }
    for a in range(0, k, block):
        a_end = min(a + block, k)
        rows = _rows(problem, engine, sizes.chunk, a, a_end)
        for name, row in rows.items():
            matrices[name][a:a_end, a:a_end] = geometry.gramian(flat_rows(row))
        for b in range(a_end, k, block):
            b_end = min(b + block, k)
            others = _rows(problem, engine, sizes.chunk, b, b_end)
            for name, row in rows.items():
                cross = geometry.cross_gramian(flat_rows(row), flat_rows(others[name]))
                matrices[name][a:a_end, b:b_end] = cross
                matrices[name][b:b_end, a:a_end] = cross.T
    return {name: geometry.blank_rows(matrix) for name, matrix in matrices.items()}
