"""Groups of samples that a network finds similar, for microbatches that hold neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gafscope.data import Split
from gafscope.errors import UserError

_PIECE = 1000


def similar_groups(model: nn.Module, split: Split, smallest: int) -> Tensor:
    """Divide samples into groups of equal size by their activations before the last dense layer.

    All samples are halved at the median of their projection on the direction in which they vary
    most, and so is each half, as long as it keeps `smallest` samples.

    Args:
        model: The network, with a dense layer; its training mode is put back.
        split: The samples, n of them.
        smallest: The fewest samples that a group may have.

    Returns:
        (n,) int64, the group of each sample; sizes differ by 1 at most.

    Raises:
        UserError: If there are too few samples for two groups.

    Source:
        The PCA tree of Verma, Kpotufe and Dasgupta, "Which spatial partition trees are adaptive to
        intrinsic dimension?" (2009), without its random choices.
    """
    if len(split) < 2 * smallest:
        raise UserError(
            f"Groups of similar samples need at least {smallest} samples each (4 microbatch_size), "
            f"but there are {len(split)} in all; lower microbatch_size or use more data."
        )
    features_nd = last_activations(model, split)
    members = [torch.arange(len(features_nd))]
    while min(map(len, members)) // 2 >= smallest:
        members = [half for group in members for half in _halves(features_nd, group)]
    groups = torch.empty(len(features_nd), dtype=torch.int64)
    for number, group in enumerate(members):
        groups[group] = number
    return groups


@torch.no_grad()
def last_activations(model: nn.Module, split: Split) -> Tensor:
    """Give what the last dense layer of a network reads of each sample.

    Args:
        model: The network; evaluated in evaluation mode.
        split: The samples, n of them.

    Returns:
        (n, d) float64 on the CPU, of tokens the mean over their positions.
    """
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read = inputs[0].double().cpu()
        found.append(read.flatten(1, -2).mean(1) if read.ndim > 2 else read)

    handle = last.register_forward_pre_hook(keep)
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    model.eval()
    try:
        for indices in torch.arange(len(split)).split(_PIECE):
            model(split.batch(indices)[0].to(device))
    finally:
        handle.remove()
        for module, training in modes.items():
            module.training = training
    return torch.cat(found)


def _halves(features_nd: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    own = features_nd[group]
    own = own - own.mean(0)
    direction = torch.linalg.eigh(own.T @ own).eigenvectors[:, -1]
    order = group[(own @ direction).argsort(stable=True)]
    return order[: len(order) // 2], order[len(order) // 2 :]
