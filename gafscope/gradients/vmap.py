"""The vmap engine: torch.func's vectorised gradients, many microbatches at once."""

from __future__ import annotations

import warnings
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gafscope.gradients.isolation import kept_buffers, seed_everything
from gafscope.gradients.loss import Loss, check_differentiable, mean_loss
from gafscope.gradients.problem import Problem


@final
class _Objective(nn.Module):
    """The mean loss of a microbatch as a module, so that functional_call reaches the model."""

    def __init__(self, model: nn.Module, loss: Loss, samples: int):
        super().__init__()
        self.model = model
        self.loss = loss
        self.samples = samples

    def forward(self, batch: Any) -> Tensor:
        loss = mean_loss(self.loss(self.model, batch), self.samples)
        check_differentiable(loss)
        return loss


def vmap_rows(problem: Problem, start: int, stop: int) -> tuple[dict[str, Tensor], Tensor]:
    """Differentiate microbatches start..stop-1 in one vectorised call.

    Args:
        problem: The measurement.
        start: First microbatch.
        stop: One past the last.

    Returns:
        Parameter name -> (stop - start, *parameter.shape), zeros where a parameter is unused; and
        the mean losses, (stop - start,).

    Raises:
        UserError: If the loss returns a wrong shape or depends on no parameter.
        RuntimeError: If the model does what vmap cannot (e.g. branch on a tensor's value).
    """
    objective = _Objective(problem.model, problem.loss, problem.u)

    def loss_of(parameters: dict[str, Tensor], batch: Any) -> Tensor:
        named = {f"model.{name}": value for name, value in parameters.items()}
        return functional_call(objective, named, (batch,))

    parameters = {name: p.detach() for name, p in problem.parameters.items()}
    seed_everything(problem.model, problem.seed + start)
    gradients = vmap(grad_and_value(loss_of), in_dims=(None, 0), randomness="different")
    # Fused attention kernels have no vectorised form: torch would loop over them, and warn.
    # Without no_grad, the rows would carry a graph where something else requires a gradient.
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
        kept_buffers(problem.model),
        warnings.catch_warnings(),
    ):
        # An operation that vmap has to run row by row is slow, but right.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        return gradients(parameters, problem.microbatches(start, stop))
