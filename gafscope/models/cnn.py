"""A small convolutional network: three convolutions, global average pooling, one linear layer."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from gafscope.errors import unknown_name
from gafscope.models._parts import MapNorm, map_norm, require_sizes


@final
class CNN(nn.Module):
    """Three 3x3 convolutions, the first two followed by 2x2 max pooling; made by `cnn`.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        width: Channels of the first convolution; the others have 2 and 4 times as many.
        norm: None, "batch" or "group"; between each convolution and its ReLU.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, norm: str | None):
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(in_channels, width, norm),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width, norm),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 4 * width, norm),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n classes"]:
        """Classify a batch of images.

        Args:
            images: (n, in_channels, height, width), of 8 x 8 pixels or more.

        Returns:
            Logits, (n, num_classes).
        """
        return self.head(self.features(images))


def cnn(
    in_channels: int = 1,
    num_classes: int = 10,
    *,
    width: int = 32,
    norm: MapNorm | None = None,
) -> CNN:
    """Make a small convolutional network for images of any size from 8 x 8.

    Three times 3x3 convolution, norm and ReLU, with `width`, `2 width` and `4 width` channels and
    2x2 max pooling in between, then the average over all positions and a linear layer. Weights
    are drawn from N(0, 2 / fan_in), biases are 0 (He et al. 2015, arXiv 1502.01852). There are
    94,538 parameters with 3 input channels and the defaults otherwise.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        width: Channels of the first convolution.
        norm: None, "batch" or "group". The convolutions have biases only without a norm.

    Returns:
        The network, which maps (n, in_channels, height, width) to (n, num_classes).

    Raises:
        UserError: If a size is not positive or the norm is unknown.

    Example:
        >>> import torch
        >>> cnn(3, 10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    require_sizes(in_channels=in_channels, num_classes=num_classes, width=width)
    if norm not in (None, "batch", "group"):
        raise unknown_name("norm", norm, ("batch", "group"))
    return CNN(in_channels, num_classes, width, norm)


def _convolution(in_channels: int, channels: int, norm: str | None) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=norm is None)
    if norm is None:
        return [convolution, nn.ReLU()]
    return [convolution, map_norm(norm, channels), nn.ReLU()]
