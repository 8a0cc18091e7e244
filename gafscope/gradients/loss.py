"""What a loss is: a function of (model, batch) that gives one number a sample, or their mean."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from gafscope.errors import UserError


@runtime_checkable
class Loss(Protocol):
    """Maps a model and a batch of B samples to their losses, (B,), or to the mean loss, ()."""

    def __call__(self, model: Callable[..., Any], batch: Any, /) -> Tensor:
        """Compute the losses of one microbatch."""
        ...


@final
class Supervised:
    """Loss of batches `(inputs, targets)`: `criterion(model(inputs), targets)`, sample by sample.

    Made by `supervised`; see there.
    """

    def __init__(self, criterion: Callable[..., Tensor], class_dim: int | None = None):
        self.ignore_index = _ignore_index(criterion)
        self.class_dim = class_dim
        self._criterion = _unreduced(criterion)

    def __call__(self, model: Callable[..., Any], batch: Any, /) -> Tensor:
        """Give the loss of each sample.

        Args:
            model: Called as `model(inputs)`.
            batch: `(inputs, targets)`.

        Returns:
            (B,), or () when the criterion itself averages.
        """
        return self.with_outputs(model, batch)[0]

    def with_outputs(self, model: Callable[..., Any], batch: Any) -> tuple[Tensor, Tensor]:
        """Give the losses and the model's outputs, from one forward pass.

        Args:
            model: Called as `model(inputs)`.
            batch: `(inputs, targets)`.

        Returns:
            Losses as `__call__` gives them, and the outputs with the classes in dimension 1.
        """
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise UserError(
                "A supervised loss takes batches (inputs, targets), but this batch is a "
                f"{type(batch).__name__} and no pair; write your own loss (model, batch) -> "
                "losses of shape (B,)."
            )
        inputs, targets = batch
        outputs, targets = self._classes_second(model(inputs), targets)
        losses = self._criterion(outputs, targets)
        if outputs.numel() == targets.numel() < losses.numel():
            raise UserError(
                f"The criterion broadcast outputs of shape {tuple(outputs.shape)} and targets of "
                f"shape {tuple(targets.shape)} to losses of shape {tuple(losses.shape)}; give "
                "both the same shape, e.g. with squeeze(1)."
            )
        if losses.ndim <= 1:
            return losses, outputs
        counted = self._counted(losses, targets)
        total = torch.where(counted, losses, 0.0).flatten(1).sum(1)
        return total / counted.flatten(1).sum(1).clamp(min=1), outputs

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Give the share of right answers of each sample.

        Args:
            outputs: (B, classes, ...), as `with_outputs` gives them.
            targets: (B, ...) class indices.

        Returns:
            (B,) float32 in [0, 1]; None where the targets are not class indices.
        """
        is_classes = not targets.is_floating_point() and outputs.ndim == targets.ndim + 1
        if not is_classes:
            return None
        counted = targets != self.ignore_index
        right = (outputs.detach().argmax(1) == targets) & counted
        counted = counted.reshape(len(targets), -1).sum(1).clamp(min=1)
        return right.reshape(len(targets), -1).sum(1) / counted

    def _counted(self, losses: Tensor, targets: Tensor) -> Tensor:
        if targets.shape == losses.shape and not targets.is_floating_point():
            return targets != self.ignore_index
        return torch.ones_like(losses, dtype=torch.bool)

    def _classes_second(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Move the class dimension to where torch's criteria want it, dimension 1."""
        for name, value in (("a model that returns", outputs), ("targets that are", targets)):
            if not isinstance(value, Tensor):
                raise UserError(
                    f"A supervised loss takes {name} one tensor, but this is a "
                    f"{type(value).__name__}; write your own loss (model, batch) -> losses of "
                    "shape (B,)."
                )
        if self.class_dim is not None:
            if outputs.shape == targets.shape:  # soft targets have the classes there as well
                targets = targets.movedim(self.class_dim, 1)
            return outputs.movedim(self.class_dim, 1), targets
        if targets.is_floating_point() or outputs.ndim < 3 or outputs.ndim != targets.ndim + 1:
            return outputs, targets
        classes_last = outputs.shape[:-1] == targets.shape
        classes_second = (outputs.shape[0], *outputs.shape[2:]) == tuple(targets.shape)
        if classes_last and classes_second:
            raise UserError(
                f"Outputs of shape {tuple(outputs.shape)} may hold their classes in dimension 1 "
                "or in the last one; say which with supervised(criterion, class_dim=...)."
            )
        return (outputs.movedim(-1, 1) if classes_last else outputs), targets


def supervised(criterion: Callable[..., Tensor], class_dim: int | None = None) -> Supervised:
    """Make a per-sample loss of a criterion such as `torch.nn.functional.cross_entropy`.

    The criterion's reduction is switched off. Further dimensions of its output (tokens, pixels)
    are averaged sample by sample over the positions whose target is not `ignore_index`, so that
    the loss has shape (B,).

    Args:
        criterion: A function or module `(outputs, targets) -> losses`. One without a
            `reduction` option is called as it is and may return (B, ...) or the mean.
        class_dim: Dimension of the outputs (and of soft targets) that holds the classes. Found
            from the shapes when None: dimension 1, as torch has it, or the last one, as language
            models have it; with soft targets, dimension 1.

    Returns:
        A loss for batches `(inputs, targets)`.

    Raises:
        UserError: When called, if the batch is no pair of tensors, the class dimension is
            ambiguous, or the criterion broadcasts outputs (B, 1) against targets (B,).

    Example:
        >>> loss = supervised(torch.nn.functional.cross_entropy)
        >>> loss(torch.nn.Identity(), (torch.zeros(2, 3), torch.tensor([0, 1])))
        tensor([1.0986, 1.0986])
    """
    return Supervised(criterion, class_dim)


def mean_loss(losses: Any, samples: int) -> Tensor:
    """Average what a loss returned over a microbatch, after checking its shape.

    Args:
        losses: What the loss returned: (samples,) or ().
        samples: Number of samples in the microbatch.

    Returns:
        A scalar tensor.

    Raises:
        UserError: If the loss returned anything else.
    """
    rule = (
        f"A loss must return one number a sample, here ({samples},), or their mean, a scalar tensor"
    )
    if not isinstance(losses, Tensor):
        raise UserError(f"{rule}; this one returned a {type(losses).__name__}.")
    if not losses.is_floating_point():
        raise UserError(f"{rule}; this one returned {losses.dtype}, which has no gradient.")
    if losses.ndim and losses.shape != (samples,):
        raise UserError(
            f"{rule}; this one returned shape {tuple(losses.shape)}. Average its further "
            "dimensions (gafscope.supervised does that for a criterion)."
        )
    return losses.mean() if losses.ndim else losses


def check_differentiable(loss: Tensor) -> None:
    """Refuse a loss that no parameter can lower.

    Args:
        loss: The mean loss.

    Raises:
        UserError: If it requires no gradient.
    """
    if not loss.requires_grad:
        raise UserError(
            "The loss does not depend on any trainable parameter (it requires no gradient); "
            "check that it is computed from the model's outputs, without detach() or no_grad."
        )


def _unreduced(criterion: Callable[..., Tensor]) -> Callable[..., Tensor]:
    if isinstance(criterion, nn.Module):
        if not hasattr(criterion, "reduction"):
            return criterion
        criterion = copy.copy(criterion)
        vars(criterion)["reduction"] = "none"
        return criterion
    return partial(criterion, reduction="none") if "reduction" in _options(criterion) else criterion


def _ignore_index(criterion: Callable[..., Tensor]) -> int:
    index = getattr(criterion, "ignore_index", _options(criterion).get("ignore_index"))
    return index if isinstance(index, int) else -100


def _options(criterion: Callable[..., Tensor]) -> dict[str, Any]:
    """Give the names and defaults of a criterion's arguments, as far as Python knows them."""
    try:
        parameters = inspect.signature(criterion).parameters
    except (TypeError, ValueError):
        return {}
    return {name: parameter.default for name, parameter in parameters.items()}
