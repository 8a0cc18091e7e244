"""The vision transformer of Dosovitskiy et al. 2020 (arXiv 2010.11929)."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.models._parts import require_dropout, require_sizes
from gafscope.models._transformer import Block, require_heads


@final
class ViT(nn.Module):
    """Patches, a class token and positions through pre-norm blocks; made by `vit`.

    Args:
        num_classes: Number of logits.
        image_size: Height and width of the images.
        patch_size: Height and width of a patch.
        in_channels: Channels of the images.
        dim: Numbers a token.
        depth: Number of blocks.
        heads: Number of attention heads.
        mlp_ratio: Hidden units of each block's MLP over `dim`.
        dropout: Dropout rate.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: int,
        patch_size: int,
        in_channels: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
    ):
        super().__init__()
        self.image_size = image_size
        self.patches = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.class_token = nn.Embedding(1, dim)
        self.positions = nn.Embedding(1 + (image_size // patch_size) ** 2, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(Block(dim, heads, mlp_ratio, dropout, causal=False) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        for module in self.modules():
            _initialise(module)

    def forward(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n classes"]:
        """Classify a batch of images.

        Args:
            images: (n, in_channels, image_size, image_size).

        Returns:
            Logits, (n, num_classes).

        Raises:
            UserError: If the images have another size.
        """
        size = tuple(images.shape[-2:])
        if size != (self.image_size, self.image_size):
            raise UserError(
                f"This vit takes images of {self.image_size} x {self.image_size} pixels, but these "
                f"have {size[0]} x {size[1]}; resize them or build it with another image_size."
            )
        patches = self.patches(images).flatten(2).transpose(1, 2)
        # Looked up sample by sample, not broadcast, so that a hook on these two modules sees
        # every sample's own gradient.
        ids = torch.arange(1 + patches.shape[1], device=images.device).expand(len(images), -1)
        tokens = torch.cat([self.class_token(torch.zeros_like(ids[:, :1])), patches], dim=1)
        tokens = self.dropout(tokens + self.positions(ids))
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def vit(
    num_classes: int = 10,
    *,
    image_size: int = 32,
    patch_size: int = 4,
    in_channels: int = 3,
    dim: int = 192,
    depth: int = 6,
    heads: int = 3,
    mlp_ratio: int = 4,
    dropout: float = 0.0,
) -> ViT:
    """Make a vision transformer: pre-norm blocks, a class token, learned position embeddings.

    Weights are drawn from N(0, 0.02^2) cut off at two standard deviations, biases are 0. The
    defaults (the width of ViT-Ti, half its depth) have 2.7 million parameters;
    `vit(dim=128, heads=4)` has 1.2 million.

    Args:
        num_classes: Number of logits.
        image_size: Height and width of the images; a multiple of `patch_size`.
        patch_size: Height and width of a patch.
        in_channels: Channels of the images.
        dim: Numbers a token; a multiple of `heads`.
        depth: Number of blocks.
        heads: Number of attention heads.
        mlp_ratio: Hidden units of each block's MLP over `dim`.
        dropout: Dropout rate in [0, 1), on the embeddings and after every dense layer but qkv.

    Returns:
        The network, which maps (n, in_channels, image_size, image_size) to (n, num_classes).

    Raises:
        UserError: If a size is not positive, the patches do not tile the image, the heads do not
            divide `dim`, or the dropout rate is out of range.

    Example:
        >>> import torch
        >>> vit(10, dim=16, depth=1, heads=2)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    require_sizes(
        num_classes=num_classes,
        image_size=image_size,
        patch_size=patch_size,
        in_channels=in_channels,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
    )
    require_dropout(dropout)
    require_heads(dim, heads)
    if image_size % patch_size:
        fitting = [size for size in range(1, image_size + 1) if image_size % size == 0]
        raise UserError(
            f"image_size must be divisible by patch_size, but {image_size} is not divisible by "
            f"{patch_size}; pass a patch_size out of {fitting}."
        )
    return ViT(
        num_classes,
        image_size=image_size,
        patch_size=patch_size,
        in_channels=in_channels,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        dropout=dropout,
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
