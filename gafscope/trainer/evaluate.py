"""Loss and accuracy of a model on a batch, without a trace in the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gafscope.gradients import Loss, Supervised
from gafscope.gradients.loss import mean_loss
from gafscope.gradients.problem import batch_size
from gafscope.trainer.ranks import Ranks

_PIECE = 1000


@torch.no_grad()
def evaluate(
    model: nn.Module, loss: Loss, batch: Any, ranks: Ranks | None = None
) -> dict[str, float]:
    """Evaluate a model in evaluation mode.

    Args:
        model: The model; its training mode is put back.
        loss: The loss.
        batch: A pytree of tensors, taken 1,000 samples at a time.
        ranks: Those who share the work, each with the same model and batch.

    Returns:
        `loss`, the mean over samples, and `accuracy` in [0, 1], NaN where there are no classes.
    """
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    n = batch_size(batch)
    starts = range(0, n, _PIECE)
    pieces = torch.zeros(len(starts), 2, dtype=torch.float64)
    model.eval()
    try:
        for i, start in enumerate(starts):
            if ranks is not None and i % ranks.count != ranks.rank:
                continue
            piece = pytree.tree_map(lambda leaf, s=start: leaf[s : s + _PIECE].to(device), batch)
            mean, right = loss_and_accuracy(model, loss, piece, min(_PIECE, n - start))
            pieces[i] = torch.tensor([mean.item(), right], dtype=torch.float64)
    finally:
        for module, training in modes.items():
            module.training = training
    if ranks is not None:
        # Each piece is one rank's and nought on the others, so the sums are exact.
        (pieces,) = ranks.sum(pieces)
    loss_sum, right_sum = 0.0, 0.0
    for start, (mean, right) in zip(starts, pieces.tolist(), strict=True):
        size = min(_PIECE, n - start)
        loss_sum += mean * size
        right_sum += right * size
    return {"loss": loss_sum / n, "accuracy": right_sum / n}


def loss_and_accuracy(
    model: Callable[..., Any], loss: Loss, batch: Any, size: int
) -> tuple[Tensor, float]:
    """Run one forward pass.

    Args:
        model: The model, as the loss calls it.
        loss: The loss.
        batch: A pytree of tensors.
        size: Its number of samples.

    Returns:
        The mean loss, (), and the share of right answers, NaN where there are no classes.

    Raises:
        UserError: If the loss returns a wrong shape.
    """
    if not isinstance(loss, Supervised):
        return mean_loss(loss(model, batch), size), math.nan
    losses, outputs = loss.with_outputs(model, batch)
    right = loss.accuracy(outputs, batch[1])
    return mean_loss(losses, size), math.nan if right is None else right.mean().item()
