"""The loop engine: one forward and one backward a microbatch. Always right, the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from gafscope.gradients.isolation import kept_buffers, seed_everything
from gafscope.gradients.loss import check_differentiable, mean_loss
from gafscope.gradients.problem import Problem


def loop_rows(problem: Problem, start: int, stop: int) -> tuple[dict[str, Tensor], Tensor]:
    """Differentiate microbatches start..stop-1 one after the other.

    Args:
        problem: The measurement.
        start: First microbatch.
        stop: One past the last.

    Returns:
        Parameter name -> (stop - start, *parameter.shape), zeros where a parameter is unused; and
        the mean losses, (stop - start,).

    Raises:
        UserError: If the loss returns a wrong shape or depends on no parameter.
    """
    parameters = list(problem.parameters.values())
    rows = [p.new_zeros(stop - start, *p.shape, requires_grad=False) for p in parameters]
    losses = []
    for i in range(start, stop):
        seed_everything(problem.model, problem.seed + i)
        with kept_buffers(problem.model):
            loss = mean_loss(problem.loss(problem.model, problem.microbatch(i)), problem.u)
            check_differentiable(loss)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        losses.append(loss.detach())
        for row, gradient in zip(rows, gradients, strict=True):
            if gradient is not None:
                row[i - start] = gradient.to_dense()
    return dict(zip(problem.parameters, rows, strict=True)), torch.stack(losses)
