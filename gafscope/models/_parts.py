"""What several networks share: checks of their sizes, and the norms of feature maps."""

from __future__ import annotations

from numbers import Integral
from typing import Literal, TypeAlias

from torch import nn

from gafscope.errors import UserError, unknown_name

MapNorm: TypeAlias = Literal["batch", "group"]


def require_sizes(**sizes: int) -> None:
    """Refuse any size that is not a whole number of at least 1.

    Args:
        **sizes: The sizes under the names that the caller knows them by.

    Raises:
        UserError: If one of them is anything else.
    """
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise UserError(
                f"{name} must be a whole number of at least 1, but it is {size!r}; "
                "pass a positive integer."
            )


def require_dropout(dropout: float) -> None:
    """Refuse a dropout rate outside [0, 1).

    Args:
        dropout: Share of the activations to drop.

    Raises:
        UserError: If the rate is out of range.
    """
    if not 0 <= dropout < 1:
        raise UserError(
            f"dropout must lie in [0, 1), but it is {dropout!r}; pass 0.0 to switch it off."
        )


def map_norm(norm: str, channels: int) -> nn.Module:
    """Make the norm of a feature map of shape (n, channels, height, width).

    GroupNorm (Wu and He 2018, arXiv 1803.08494) takes the largest number of groups, at most 32,
    that divides the channels and leaves at least two in each: a lone channel on a map of a
    single pixel would be normalised to zero, whatever the input.

    Args:
        norm: "batch" or "group".
        channels: Number of channels.

    Returns:
        The norm, with weight 1 and bias 0.

    Raises:
        UserError: If there is no such norm.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        fitting = (g for g in range(2, 33) if channels % g == 0 and channels >= 2 * g)
        return nn.GroupNorm(max(fitting, default=1), channels)
    raise unknown_name("norm", str(norm), ("batch", "group"))
