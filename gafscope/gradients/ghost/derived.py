"""Tensors made of parameters alone: transposes, slices, reparametrised weights.

A call may use such a tensor instead of a parameter. Rows with respect to it are pulled back to
the parameters through its own graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from gafscope.gradients.ghost.plan import Call


def origins(calls: tuple[Call, ...]) -> dict[str, set[str]]:
    """Tell which parameters each derived tensor is made of.

    Args:
        calls: The plan.

    Returns:
        Key of the derived tensor -> names of parameters.
    """
    found: dict[str, set[str]] = {}
    for call in calls:
        if call.derives:
            names = {name for key in call.keys if key for name in found.get(key, {key})}
            found |= dict.fromkeys(call.made, names)
    return found


def are_parts(parameter: nn.Parameter, derived: list[Tensor]) -> bool:
    """Tell whether tensors are views of disjoint parts of a parameter.

    Then the parameter's Gramian is the sum of theirs.

    Args:
        parameter: The parameter.
        derived: Tensors made of it.

    Returns:
        Whether they certainly are; views with gaps count as overlapping.
    """
    spans = []
    for tensor in derived:
        if tensor._base is not parameter and tensor is not parameter:
            return False
        start = tensor.storage_offset()
        extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        if extent != tensor.numel() or 0 in tensor.stride():
            return False
        spans.append((start, start + extent))
    spans.sort()
    return all(a[1] <= b[0] for a, b in pairwise(spans))


def pull_rows(
    tensor: Tensor, rows: Tensor, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Turn rows with respect to a derived tensor into rows of parameters.

    Args:
        tensor: The derived tensor, with its graph.
        rows: (k, *tensor.shape).
        parameters: The parameters that it is made of.

    Returns:
        Name -> (k, *parameter.shape).
    """
    pulled = [pull(tensor, row, parameters) for row in rows]
    return {name: torch.stack([row[name] for row in pulled]) for name in parameters}


def pull(
    tensor: Tensor, gradient: Tensor, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Turn a gradient with respect to a derived tensor into gradients of parameters.

    Args:
        tensor: The derived tensor, with its graph.
        gradient: Of the tensor's shape.
        parameters: The parameters that it is made of.

    Returns:
        Name -> gradient.
    """
    gradients = torch.autograd.grad(
        tensor, [*parameters.values()], gradient.to(tensor.dtype), retain_graph=True,
        materialize_grads=True,
    )  # fmt: skip
    return dict(zip(parameters, gradients, strict=True))
