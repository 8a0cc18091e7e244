from __future__ import annotations

import pytest
import torch

from gafscope.data.noise import symmetric_noise


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.333, 0.75, 0.999])
def test_exactly_the_rounded_share_moves_and_stays_in_range(share: float):
    clean = torch.arange(1001) % 7
    noisy = symmetric_noise(clean, share, 7, seeded())
    assert int((noisy != clean).sum()) == round(share * 1001)
    assert int(noisy.min()) >= 0
    assert int(noisy.max()) < 7
    assert torch.equal(clean, torch.arange(1001) % 7)


def test_moved_labels_are_uniform_over_the_other_classes():
    clean = torch.full((40_000,), 2, dtype=torch.int64)
    counts = torch.bincount(symmetric_noise(clean, 0.5, 5, seeded()), minlength=5)
    assert int(counts[2]) == 20_000
    others = counts[[0, 1, 3, 4]]
    # 5,000 each, standard deviation 61.
    assert (others - 5_000).abs().max() < 300


def test_two_classes_swap():
    clean = torch.tensor([0, 1, 0, 1])
    assert int((symmetric_noise(clean, 0.5, 2, seeded()) != clean).sum()) == 2


def test_the_same_seed_gives_the_same_and_nested_noise():
    clean = torch.arange(500) % 10
    small, again = (symmetric_noise(clean, 0.1, 10, seeded(3)) for _ in range(2))
    large = symmetric_noise(clean, 0.4, 10, seeded(3))
    moved = small != clean
    assert torch.equal(small, again)
    assert torch.equal(small[moved], large[moved])
    assert not torch.equal(small, symmetric_noise(clean, 0.1, 10, seeded(4)))
