"""One measurement, checked: which model, which loss, which microbatches of which batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gafscope.errors import UserError
from gafscope.gradients.loss import Loss


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """What every engine is given.

    Attributes:
        model: The module whose parameters are differentiated.
        loss: The loss, `(model, batch) -> (B,) or ()`.
        batch: A pytree of tensors (k, u, ...).
        k: Number of microbatches, one row each.
        u: Samples in each.
        parameters: The trainable parameters by name; tied ones once.
        seed: Random draws of microbatch i start from `seed + i`.
    """

    model: nn.Module
    loss: Loss
    batch: Any
    k: int
    u: int
    parameters: dict[str, nn.Parameter]
    seed: int

    def microbatch(self, i: int) -> Any:
        """Give microbatch i, a pytree of tensors (u, ...)."""
        return pytree.tree_map(lambda leaf: leaf[i], self.batch)

    def microbatches(self, start: int, stop: int) -> Any:
        """Give microbatches start..stop-1, a pytree of tensors (stop - start, u, ...)."""
        return pytree.tree_map(lambda leaf: leaf[start:stop], self.batch)

    def samples(self, indices: Iterable[int]) -> Any:
        """Give single samples, counted over all microbatches, round and round where they end."""
        index = [i % (self.k * self.u) for i in indices]
        return pytree.tree_map(lambda leaf: leaf.flatten(0, 1)[index].detach(), self.batch)

    @property
    def flat(self) -> Any:
        """All samples, a pytree of tensors (k * u, ...)."""
        return pytree.tree_map(lambda leaf: leaf.flatten(0, 1).detach(), self.batch)

    @property
    def row_bytes(self) -> int:
        """Memory of one row, in bytes."""
        return sum(p.numel() * p.element_size() for p in self.parameters.values())


def make_problem(
    model: nn.Module, loss: Loss, batch: Any, microbatches: int | None, seed: int | None
) -> Problem:
    """Check what the user passed and cut the batch into microbatches.

    Args:
        model: The model.
        loss: The loss.
        batch: A pytree of tensors that share their leading dimension n.
        microbatches: k, which must divide n; None for one row a sample.
        seed: Seed of the random draws (dropout); None takes it from torch's global state,
            which stays as it is.

    Returns:
        The checked problem.

    Raises:
        UserError: If there is nothing to differentiate, no sample, or k does not divide n.
    """
    n = batch_size(batch)
    k = n if microbatches is None else microbatches
    if not isinstance(k, Integral) or k < 1 or n % k:
        raise UserError(
            f"microbatches must divide the number of samples, but {n} samples cannot be cut "
            f"into {k} equal microbatches; choose from {_divisors(n)}."
        )
    k = int(k)
    u = n // k
    _check_coupling(model, u)
    return Problem(
        model=model,
        loss=loss,
        batch=pytree.tree_map(lambda leaf: leaf.reshape(k, u, *leaf.shape[1:]), batch),
        k=k,
        u=u,
        parameters=trainable(model),
        seed=_base_seed(seed),
    )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Give the parameters that require gradients, tied ones once.

    Args:
        model: The model.

    Returns:
        Name -> parameter.

    Raises:
        UserError: If there is none.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UserError(
            f"The model ({type(model).__name__}) has no parameter that requires a gradient, so "
            "there is nothing to train; unfreeze some with parameter.requires_grad_(True)."
        )
    return parameters


def batch_size(batch: Any) -> int:
    """Give the number of samples of a batch.

    Args:
        batch: A pytree of tensors.

    Returns:
        The leading dimension that all its tensors share.

    Raises:
        UserError: If there is no tensor, a leaf is no tensor, or the sizes differ.
    """
    leaves = pytree.tree_leaves(batch)
    others = [leaf for leaf in leaves if not isinstance(leaf, Tensor) or not leaf.ndim]
    if not leaves or others:
        found = "nothing"
        if others:
            scalar = isinstance(others[0], Tensor)
            found = "a tensor without dimensions" if scalar else f"a {type(others[0]).__name__}"
        raise UserError(
            "A batch is made of tensors (a tensor, a pair, a dict ...) whose first dimension "
            f"counts the samples, but this one holds {found}."
        )
    sizes = sorted({len(leaf) for leaf in leaves})
    if len(sizes) > 1 or not sizes[0]:
        raise UserError(
            "All tensors of a batch must have the same, positive number of samples in their "
            f"first dimension, but these have {sizes}."
        )
    return sizes[0]


def _check_coupling(model: nn.Module, u: int) -> None:
    """Refuse gradients of single samples where BatchNorm ties them to each other."""
    if u > 1:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            raise UserError(
                "Per-sample gradients with BatchNorm in training mode do not exist: its batch "
                f"statistics couple the samples ('{name}' is a {type(module).__name__} in "
                "training mode). Call model.eval() first, use GroupNorm instead, or ask for "
                "microbatches of at least 2 samples."
            )


def _base_seed(seed: int | None) -> int:
    if seed is not None:
        return seed
    with torch.random.fork_rng(devices=[]):
        return int(torch.randint(1 << 40, ()))


def _divisors(n: int) -> str:
    found = [d for d in range(1, min(n, 4096) + 1) if n % d == 0]
    shown = found if len(found) <= 12 else [*found[:11], "..."]
    return ", ".join(map(str, shown))
