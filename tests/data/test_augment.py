from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gafscope.data import crop_and_flip
from gafscope.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def every_outcome(image: Tensor, padding: int) -> list[Tensor]:
    """All that can become of one image (C, H, W), the slow and obvious way."""
    _, height, width = image.shape
    framed = F.pad(image, (padding,) * 4)
    outcomes = []
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = framed[:, top : top + height, left : left + width]
            outcomes += [window, window.flip(-1)]
    return outcomes


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_outcome_is_equally_likely_and_there_are_no_others(dtype: torch.dtype):
    image = torch.arange(1, 2 * 4 * 5 + 1).view(2, 4, 5).to(dtype)
    images = crop_and_flip(image.expand(1800, 2, 4, 5), seeded(), padding=1)
    assert images.dtype == dtype
    outcomes = torch.stack(every_outcome(image, 1))
    matches = (images[:, None] == outcomes[None]).flatten(2).all(2)
    assert matches.sum(1).unique().tolist() == [1]
    counts = matches.sum(0)
    # 18 outcomes, 100 each, standard deviation 10.
    assert counts.min() > 60
    assert counts.max() < 150


def test_each_image_keeps_its_place():
    images = torch.arange(1.0, 41.0)[:, None, None, None].expand(40, 3, 12, 12)
    shifted = crop_and_flip(images, seeded())
    assert torch.equal(shifted.amax((1, 2, 3)), torch.arange(1.0, 41.0))
    assert not torch.equal(shifted, images)


def test_the_generator_decides():
    images = torch.randn(8, 3, 6, 6)
    before = images.clone()
    first, again, other = (crop_and_flip(images, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


def test_no_padding_only_flips():
    image = torch.randn(1, 3, 4)
    images = crop_and_flip(image.expand(50, 1, 3, 4), seeded(), padding=0)
    same, mirrored = ((images == option).flatten(1).all(1) for option in (image, image.flip(-1)))
    assert bool((same ^ mirrored).all())
    assert 10 < int(same.sum()) < 40


@pytest.mark.parametrize("shape", [(4, 8), (4, 3, 8), (2, 3, 4, 5, 6)])
def test_only_images_are_taken(shape: tuple[int, ...]):
    with pytest.raises(UserError, match=r"\(n, C, H, W\)"):
        crop_and_flip(torch.zeros(shape), seeded())


def test_padding_is_checked():
    with pytest.raises(UserError, match="padding must be 0"):
        crop_and_flip(torch.zeros(1, 1, 4, 4), seeded(), padding=-1)


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu():
    images = torch.randn(64, 3, 32, 32)
    on_cuda = crop_and_flip(images.cuda(), seeded(3))
    assert torch.equal(on_cuda.cpu(), crop_and_flip(images, seeded(3)))
