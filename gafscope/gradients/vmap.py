"""The vmap engine: torch.func's vectorised gradients, many microbatches at once."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gafscope.gradients.loss import Loss, mean_loss
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
        return mean_loss(self.loss(self.model, batch), self.samples)


def vmap_rows(problem: Problem, start: int, stop: int) -> dict[str, Tensor]:
    """Differentiate microbatches start..stop-1 in one vectorised call.

    Args:
        problem: The measurement.
        start: First microbatch.
        stop: One past the last.

    Returns:
        Parameter name -> (stop - start, *parameter.shape); zeros where a parameter is unused.

    Raises:
        UserError: If the loss returns a wrong shape.
        RuntimeError: If the model does what vmap cannot (e.g. branch on a tensor's value).
    """
    objective = _Objective(problem.model, problem.loss, problem.u)

    def loss_of(parameters: dict[str, Tensor], batch: Any) -> Tensor:
        named = {f"model.{name}": value for name, value in parameters.items()}
        return functional_call(objective, named, (batch,))

    parameters = {name: p.detach() for name, p in problem.parameters.items()}
    torch.manual_seed(problem.seed + start)
    gradients = vmap(grad(loss_of), in_dims=(None, 0), randomness="different")
    # Fused attention kernels have no vectorised form: torch would loop over them, and warn.
    with sdpa_kernel(SDPBackend.MATH):
        return gradients(parameters, problem.microbatches(start, stop))
