"""The parameters of T networks of one shape as one matrix, their gradients and their updates.

Shape legend: T trials, k microbatches of u samples, P parameters of one network, n samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from gafscope.gradients import Supervised
from gafscope.gradients.loss import mean_loss

_PIECE = 1000


@final
class Stack:
    """Holds parameters and momenta of T networks of one shape.

    Args:
        parameters: The parameters of each network, by name.
        optimizers: The SGD of each.
        model: One of the networks; it lends its forward pass.
        loss: The loss of all.
    """

    def __init__(
        self,
        parameters: Sequence[dict[str, nn.Parameter]],
        optimizers: Sequence[Optimizer],
        model: nn.Module,
        loss: Supervised,
    ):
        self._owners = [list(named.values()) for named in parameters]
        self._optimizers = list(optimizers)
        self._names = list(parameters[0])
        self._sizes = [parameter.numel() for parameter in self._owners[0]]
        self._shapes = [parameter.shape for parameter in self._owners[0]]
        self._model, self._loss = model, loss
        self.flat_TP = torch.stack([_flat([p.detach() for p in mine]) for mine in self._owners])
        self._momentum_TP = torch.stack([self._momentum_of(t) for t in range(len(parameters))])
        settings = [optimizer.param_groups[0] for optimizer in optimizers]
        self._lr, self._mu, self._decay = (
            torch.tensor([[float(group[name])] for group in settings], dtype=torch.float64).to(
                self.flat_TP
            )
            for name in ("lr", "momentum", "weight_decay")
        )
        objective = vmap(grad_and_value(self._objective, has_aux=True), in_dims=(None, 0, 0))
        self._gradients = vmap(objective)
        self._forward = vmap(self._evaluation)

    def gradients(
        self, inputs: Tensor, targets: Tensor
    ) -> tuple[Float[Tensor, "T k P"], Float[Tensor, "T k"], Float[Tensor, "T k"]]:
        """Differentiate a macrobatch of each network.

        Args:
            inputs: (T, k, u, ...).
            targets: (T, k, u).

        Returns:
            The micro-gradients, mean losses and accuracies. A gradient whose loss is not finite
            is NaN.
        """
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), warnings.catch_warnings():
            # An operation that vmap has to run row by row is slow, but right.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            named, (losses, right) = self._gradients(self._named(self.flat_TP), inputs, targets)
        trials, k = losses.shape
        rows = torch.cat([named[name].reshape(trials, k, -1) for name in self._names], 2)
        if not bool(torch.isfinite(losses).all()):
            rows = torch.where(torch.isfinite(losses)[:, :, None], rows, math.nan)
        return rows, losses, right

    def step(
        self,
        rows: Float[Tensor, "T k P"],
        weights: Float64[Tensor, "T k"],
        steps: Bool[Tensor, " T"],
        finite: bool,
    ) -> None:
        """Update the networks that step by SGD; the others stay exactly as they are.

        With g = sum_i w_i g_i + decay * p: buffer = mu * buffer + g and p -= lr * (g + mu *
        buffer), Nesterov's form, which without momentum is plain SGD.

        Args:
            rows: The micro-gradients.
            weights: The weights of each, on the CPU; 0 drops a row, even one of NaN.
            steps: Which networks step.
            finite: Whether every gradient is.
        """
        whole = bool(steps.all())
        moving = slice(None) if whole else steps.nonzero()[:, 0].to(self.flat_TP.device)
        # Copies, unless all of them step; only those that do are worked on.
        flat, momentum = self.flat_TP[moving], self._momentum_TP[moving]
        mu, decay, rows = self._mu[moving], self._decay[moving], rows[moving]
        if not len(flat):
            return
        weights = weights.to(rows)[moving]
        if not finite:
            rows = torch.where(weights[:, :, None] != 0, rows, 0.0)
        update = torch.bmm(weights[:, None, :], rows).squeeze(1)
        if bool(decay.any()):
            update.addcmul_(decay, flat)
        momentum.mul_(mu).add_(update)
        flat.addcmul_(-self._lr[moving], update.addcmul_(mu, momentum))
        if not whole:
            self.flat_TP[moving], self._momentum_TP[moving] = flat, momentum

    def layers(self, rows: Float[Tensor, "T k P"]) -> list[dict[str, Float64[Tensor, "k k"]]]:
        """Give the Gramian of each parameter, network by network.

        Args:
            rows: The micro-gradients.
        """
        parts = [gramians(part) for part in rows.split(self._sizes, 2)]
        names = self._names
        return [
            {name: part[t] for name, part in zip(names, parts, strict=True)}
            for t in range(len(rows))
        ]

    def evaluate(self, inputs: Tensor, targets: Tensor) -> list[dict[str, float]]:
        """Evaluate each network on a batch of its own, as `gafscope.evaluate` does.

        Args:
            inputs: (T, n, ...).
            targets: (T, n).

        Returns:
            `loss` and `accuracy` of each.
        """
        n = targets.shape[1]
        totals = torch.zeros(2, len(targets), dtype=torch.float64)
        self._model.eval()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            named = self._named(self.flat_TP)
            for start in range(0, n, _PIECE):
                piece = inputs[:, start : start + _PIECE], targets[:, start : start + _PIECE]
                means = torch.stack(self._forward(named, *piece)).double().cpu()
                totals += means * piece[1].shape[1]
        self._model.train()
        losses, accuracies = (totals / n).tolist()
        return [
            {"loss": loss, "accuracy": accuracy}
            for loss, accuracy in zip(losses, accuracies, strict=True)
        ]

    def hand_out(self, t: int) -> None:
        """Write parameters and momentum into network t and its optimizer.

        Args:
            t: Which network. Of one that has never stepped the optimizer must stay without state:
                see `hand_out_momentum`.
        """
        parts = self.flat_TP[t].split(self._sizes)
        with torch.no_grad():
            for parameter, part in zip(self._owners[t], parts, strict=True):
                parameter.copy_(part.view(parameter.shape))

    def hand_out_momentum(self, t: int) -> None:
        """Write the momentum of network t, which has stepped, into its optimizer.

        Args:
            t: Which network.
        """
        if not self._optimizers[t].param_groups[0]["momentum"]:
            return
        parts = self._momentum_TP[t].split(self._sizes)
        for parameter, part in zip(self._owners[t], parts, strict=True):
            buffer = part.view(parameter.shape).clone()
            self._optimizers[t].state[parameter]["momentum_buffer"] = buffer

    def _objective(
        self, named: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, right = self._run(named, inputs, targets)
        return mean_loss(losses, len(targets)), right

    def _evaluation(
        self, named: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, right = self._run(named, inputs, targets)
        return mean_loss(losses, len(targets)), right

    def _run(
        self, named: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        def model(given: Tensor) -> Any:
            return functional_call(self._model, named, (given,))

        losses, outputs = self._loss.with_outputs(model, (inputs, targets))
        right = self._loss.accuracy(outputs, targets)
        assert right is not None, "the trainer's own data sets have classes"
        return losses, right.mean()

    def _named(self, flat_TP: Tensor) -> dict[str, Tensor]:
        parts = zip(self._names, flat_TP.split(self._sizes, 1), self._shapes, strict=True)
        return {name: part.unflatten(1, shape) for name, part, shape in parts}

    def _momentum_of(self, t: int) -> Tensor:
        state = self._optimizers[t].state
        buffers = [state.get(p, {}).get("momentum_buffer") for p in self._owners[t]]
        pairs = zip(self._owners[t], buffers, strict=True)
        return _flat([torch.zeros_like(p) if b is None else b for p, b in pairs]).detach()


def gramians(rows: Float[Tensor, "T k P"]) -> Float64[Tensor, "T k k"]:
    """Multiply the micro-gradients of each network with each other, in float64.

    Args:
        rows: The micro-gradients.

    Returns:
        On the CPU, NaN in the rows and columns of gradients that are not finite.
    """
    wide = rows.double()
    matrices = torch.bmm(wide, wide.mT).cpu()
    matrices = (matrices + matrices.mT) / 2
    finite = torch.isfinite(matrices.diagonal(dim1=1, dim2=2))
    if bool(finite.all()):
        return matrices
    return torch.where(finite[:, :, None] & finite[:, None, :], matrices, math.nan)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
