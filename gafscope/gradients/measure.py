"""The two public measurements, gradient rows and Gramian."""

from __future__ import annotations

from typing import Any

from torch import nn

from gafscope.errors import unknown_name
from gafscope.gradients.budget import Plan
from gafscope.gradients.choice import run_engine
from gafscope.gradients.ghost import PRECISIONS
from gafscope.gradients.loss import Loss
from gafscope.gradients.measured import Measured, Rows, compute_rows, measure
from gafscope.gradients.problem import make_problem
from gafscope.gradients.types import GradientRows, Gramian, sum_of_layers


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
            cannot follow the model; on a GPU whichever a first measurement finds faster. The
            ghost engine makes no rows.
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
        >>> import torch
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
    precision: str = "float32",
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
        engine: "ghost" (hooks on one forward and backward pass of all samples, no rows; the loss
            must give one number a sample), "loop" or "vmap" (from rows), or "auto": ghost for
            microbatches under 16 samples, loop for larger ones, and on a GPU whichever a first
            measurement finds fastest; where ghost cannot take a model exactly, vmap or loop.
            `engine` and `notes` of the result say which, and why.
        precision: Of the ghost engine's products. "float32": distances right to 1e-6;
            "float64": as far as the model's own precision goes, so that small distances between
            nearly equal gradients are right too; "bf16": faster on some processors, distances
            right to about 1e-2. The other engines multiply in float64.
        memory_budget: Bytes that may be used beside model and batch. Where all microbatches do
            not fit they are taken block by block, some several times.
        seed: As in `microbatch_gradients`.

    Returns:
        The Gramian, in float64.

    Raises:
        UserError: As in `microbatch_gradients`; if the ghost engine finds that the losses couple
            the samples (a contrastive loss), which then have no gradients of their own; or if
            engine="ghost" cannot take the model exactly.

    Example:
        >>> import torch
        >>> loss = lambda model, batch: model(batch).square().squeeze(1)
        >>> gramian(nn.Linear(3, 1), loss, torch.randn(8, 3)).matrix.shape
        torch.Size([8, 8])
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    problem = make_problem(model, loss, batch, microbatches, seed)

    def work(name: str, sizes: Plan) -> Measured:
        return measure(problem, name, sizes, precision, combines=False)

    measured, used, notes = run_engine(problem, engine, memory_budget, False, work)
    matrices, notes = measured.layers, (*notes, *measured.notes)
    return Gramian(sum_of_layers(matrices), matrices if layers else {}, used, notes)
