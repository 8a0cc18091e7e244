"""The usual augmentation of small images: random crop after padding, and horizontal flip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gafscope.errors import UserError


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift every image by up to `padding` pixels each way and mirror every second one.

    With p the padding, image i becomes the H x W window at a corner drawn uniformly from
    0..2p x 0..2p of the image framed by p zeros, mirrored with probability 1/2. On normalised
    images zero is the channel's mean.

    Args:
        images: (n, C, H, W), any dtype, any device.
        generator: Draws the corners and the flips; with a CPU generator they are the same
            whatever the images' device.
        padding: Width of the frame in pixels, 0 or more.

    Returns:
        (n, C, H, W), new images of the same dtype on the same device.

    Raises:
        UserError: Inputs that are no images, or a negative padding.

    Source:
        He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2.
    """
    check_images(images)
    if padding < 0:
        raise UserError(f"padding must be 0 pixels or more, found {padding}: raise it.")
    n, _, height, width = images.shape
    source = generator.device
    corners = torch.randint(2 * padding + 1, (2, n), generator=generator, device=source)
    flips = torch.randint(2, (n,), generator=generator, device=source)
    top, left = corners.to(images.device)
    flips = flips.to(images.device, torch.bool)
    framed = F.pad(images, (padding,) * 4)
    # All windows as a view, (n, C, 2p + 1, 2p + 1, H, W): only the chosen ones are copied.
    windows = framed.unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(n, device=images.device), :, top, left]
    return torch.where(flips[:, None, None, None], cropped.flip(-1), cropped)


def check_images(inputs: Tensor) -> None:
    """Refuse inputs that cannot be cropped and flipped.

    Args:
        inputs: What should be images.

    Raises:
        UserError: The inputs do not have the shape (n, C, H, W).
    """
    if inputs.ndim != 4:
        raise UserError(
            "Augmentation needs images of shape (n, C, H, W), found inputs of shape "
            f"{tuple(inputs.shape)}: turn it off for this data set."
        )
