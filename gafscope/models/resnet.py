"""Residual networks: He et al. 2015 (arXiv 1512.03385) and He et al. 2016 (arXiv 1603.05027)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gafscope.errors import unknown_name
from gafscope.models._parts import MapNorm, map_norm, require_sizes

Stem: TypeAlias = Literal["cifar", "imagenet"]
Maps: TypeAlias = Float[Tensor, "n channels height width"]
NextMaps: TypeAlias = Float[Tensor, "n next_channels next_height next_width"]


@final
class BasicBlock(nn.Module):
    """`relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))`, arXiv 1512.03385.

    Args:
        in_channels: Channels of x.
        channels: Channels of the output.
        stride: Stride of the first convolution.
        norm: "batch" or "group".
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.norm1 = map_norm(norm, channels)
        self.conv2 = _conv3x3(channels, channels)
        self.norm2 = map_norm(norm, channels)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), map_norm(norm, channels)
            )

    @property
    def last(self) -> nn.Module:
        """The branch's last module: with its weight at zero the branch adds nothing."""
        return self.norm2

    def forward(self, x: Maps) -> NextMaps:
        """Map (n, in_channels, height, width) to (n, channels, height / stride, width / stride)."""
        branch = F.relu(self.norm1(self.conv1(x)))
        branch = self.norm2(self.conv2(branch))
        return F.relu(self.shortcut(x) + branch)


@final
class PreActivationBlock(nn.Module):
    """`shortcut(x) + conv(relu(norm(conv(relu(norm(x))))))`, arXiv 1603.05027.

    Where the shortcut is a projection, it takes `relu(norm(x))` as the branch does.

    Args:
        in_channels: Channels of x.
        channels: Channels of the output.
        stride: Stride of the first convolution.
        norm: "batch" or "group".
        first: Whether this is the network's first block, whose x the stem has activated.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str, first: bool):
        super().__init__()
        self.activation = nn.Identity() if first else _activation(norm, in_channels)
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.norm1 = map_norm(norm, channels)
        self.conv2 = _conv3x3(channels, channels)
        self.projection = None
        if stride != 1 or in_channels != channels:
            self.projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    @property
    def last(self) -> nn.Module:
        """The branch's last module: with its weight at zero the branch adds nothing."""
        return self.conv2

    def forward(self, x: Maps) -> NextMaps:
        """Map (n, in_channels, height, width) to (n, channels, height / stride, width / stride)."""
        activated = self.activation(x)
        shortcut = x if self.projection is None else self.projection(activated)
        return shortcut + self.conv2(F.relu(self.norm1(self.conv1(activated))))


@final
class ResNet(nn.Module):
    """A stem, four stages of residual blocks, global average pooling, one linear layer.

    Made by `resnet18` and `resnet34`, which see to the arguments.

    Args:
        depths: Number of blocks in each stage.
        num_classes: Number of logits.
        stem: "cifar" or "imagenet".
        norm: "batch" or "group".
        pre_activation: Whether blocks are `PreActivationBlock`s instead of `BasicBlock`s.
        in_channels: Channels of the images.
        width: Channels of the first stage; each further stage has twice as many.
        zero_init_residual: Whether every block starts as its shortcut.
    """

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int,
        *,
        stem: str,
        norm: str,
        pre_activation: bool,
        in_channels: int,
        width: int,
        zero_init_residual: bool,
    ):
        super().__init__()
        self.stem = _stem(stem, in_channels, width, norm)
        self.stages = nn.Sequential()
        channels = width
        for stage, depth in enumerate(depths):
            blocks = nn.Sequential()
            for block in range(depth):
                shape = channels, width * 2**stage, 2 if stage > 0 and block == 0 else 1
                first = stage == 0 and block == 0
                blocks.append(
                    PreActivationBlock(*shape, norm, first)
                    if pre_activation
                    else BasicBlock(*shape, norm)
                )
                channels = width * 2**stage
            self.stages.append(blocks)
        self.activation = _activation(norm, channels) if pre_activation else nn.Identity()
        self.head = nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual)

    def forward(self, images: Maps) -> Float[Tensor, "n classes"]:
        """Classify a batch of images.

        Args:
            images: (n, in_channels, height, width).

        Returns:
            Logits, (n, num_classes).
        """
        features = self.activation(self.stages(self.stem(images)))
        return self.head(features.mean((2, 3)))

    def _initialise(self, zero_init_residual: bool) -> None:
        """Initialise the convolutions; norms (1 and 0) and the head keep what torch gives them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock | PreActivationBlock):
                    nn.init.zeros_(module.last.get_parameter("weight"))


def resnet18(
    num_classes: int = 100,
    *,
    stem: Stem = "cifar",
    norm: MapNorm = "batch",
    pre_activation: bool = False,
    in_channels: int = 3,
    width: int = 64,
    zero_init_residual: bool = False,
) -> ResNet:
    """Make a ResNet-18: (2, 2, 2, 2) basic blocks (He et al. 2015, arXiv 1512.03385).

    Convolutions are drawn from N(0, 2 / fan_out); norms start with weight 1 and bias 0. With the
    imagenet stem and 1000 classes there are 11,689,512 parameters.

    Args:
        num_classes: Number of logits.
        stem: "cifar": 3x3 convolution of stride 1, for small images; "imagenet": 7x7 convolution
            of stride 2 and 3x3 max pooling of stride 2, for images of 32 pixels or more.
        norm: "batch" or "group" (up to 32 groups, arXiv 1803.08494). BatchNorm couples the
            samples of a batch, so per-sample gradients in training mode exist for "group" only;
            it also needs two values a channel in training mode, that is, more than one sample
            where the last stage is down to a single pixel.
        pre_activation: Use blocks of norm, ReLU, convolution on an identity shortcut, and a
            final norm and ReLU (He et al. 2016, arXiv 1603.05027).
        in_channels: Channels of the images.
        width: Channels of the first stage; 64 in the paper, fewer make a narrow network.
        zero_init_residual: Set the last weight of every residual branch to zero (of its norm, or
            of its convolution with `pre_activation`), so that blocks start as their shortcuts.

    Returns:
        The network, which maps (n, in_channels, height, width) to (n, num_classes).

    Raises:
        UserError: If a size is not positive, or the stem or the norm is unknown.

    Example:
        >>> import torch
        >>> resnet18(10, norm="group", width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    require_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    return ResNet(
        (2, 2, 2, 2),
        num_classes,
        stem=stem,
        norm=norm,
        pre_activation=pre_activation,
        in_channels=in_channels,
        width=width,
        zero_init_residual=zero_init_residual,
    )


def resnet34(
    num_classes: int = 100,
    *,
    stem: Stem = "cifar",
    norm: MapNorm = "batch",
    pre_activation: bool = False,
    in_channels: int = 3,
    width: int = 64,
    zero_init_residual: bool = False,
) -> ResNet:
    """Make a ResNet-34: (3, 4, 6, 3) basic blocks, otherwise as `resnet18`.

    With the imagenet stem and 1000 classes there are 21,797,672 parameters.

    Args:
        num_classes: Number of logits.
        stem: "cifar" or "imagenet".
        norm: "batch" or "group".
        pre_activation: Use blocks of norm, ReLU, convolution.
        in_channels: Channels of the images.
        width: Channels of the first stage.
        zero_init_residual: Let every block start as its shortcut.

    Returns:
        The network, which maps (n, in_channels, height, width) to (n, num_classes).

    Raises:
        UserError: If a size is not positive, or the stem or the norm is unknown.
    """
    require_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    return ResNet(
        (3, 4, 6, 3),
        num_classes,
        stem=stem,
        norm=norm,
        pre_activation=pre_activation,
        in_channels=in_channels,
        width=width,
        zero_init_residual=zero_init_residual,
    )


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)


def _activation(norm: str, channels: int) -> nn.Sequential:
    return nn.Sequential(map_norm(norm, channels), nn.ReLU())


def _stem(stem: str, in_channels: int, width: int, norm: str) -> nn.Sequential:
    if stem == "cifar":
        return nn.Sequential(_conv3x3(in_channels, width), *_activation(norm, width))
    if stem == "imagenet":
        convolution = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        return nn.Sequential(
            convolution, *_activation(norm, width), nn.MaxPool2d(3, stride=2, padding=1)
        )
    raise unknown_name("stem", str(stem), ("cifar", "imagenet"))
