"""Random disjoint microbatches of a data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gafscope.errors import UserError
from gafscope.gradients.problem import batch_size

MINIMUM_ROWS = 8
MAXIMUM_ROWS = 64


def draw_microbatches(
    data: Any, microbatch_size: int, generator: torch.Generator
) -> tuple[Any, int]:
    """Take random disjoint microbatches, each sample at most once.

    Args:
        data: A pytree of tensors with n samples in their first dimension.
        microbatch_size: Samples in each.
        generator: Draws the samples.

    Returns:
        A batch of k * u samples, microbatch after microbatch, and k, at most 64.

    Raises:
        UserError: If the data is no batch, or too small for 8 microbatches.
    """
    n = batch_size(data)
    if microbatch_size < 1:
        raise UserError(
            f"microbatch_size must be at least 1 sample, but is {microbatch_size}; raise it."
        )
    rows = min(n // microbatch_size, MAXIMUM_ROWS)
    if rows < MINIMUM_ROWS:
        raise UserError(
            f"Calibration needs at least {MINIMUM_ROWS} disjoint microbatches, 16 or more to be "
            f"precise, but {n} samples make {rows} of microbatch_size={microbatch_size}; give "
            "more data or a smaller microbatch_size."
        )
    return take(data, torch.randperm(n, generator=generator)[: rows * microbatch_size]), rows


def take(data: Any, indices: Tensor) -> Any:
    """Pick samples of a batch.

    Args:
        data: A pytree of tensors.
        indices: Which samples, (m,), on the CPU.

    Returns:
        The same pytree with m samples, on its own devices.
    """
    return pytree.tree_map(lambda leaf: leaf[indices.to(leaf.device)], data)
