"""The official CIFAR-100 files and human labels, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gafscope.data import Dataset, MicrobatchSampler, load_data


@pytest.fixture(scope="module")
def human() -> Dataset:
    root = os.environ.get("GAFSCOPE_DATA")
    if not root:
        pytest.skip("GAFSCOPE_DATA is not set: it names the folder of the real CIFAR files")
    for name in ("cifar-100-python/train", "cifar-n/CIFAR-100_human.pt"):
        if not (Path(root) / name).exists():
            pytest.skip(f"GAFSCOPE_DATA has no {name}")
    return load_data("cifar100n", seed=0)


def test_sizes_and_classes(human: Dataset):
    assert (len(human.train), len(human.validation), len(human.test)) == (45_000, 5_000, 10_000)
    assert human.input_shape == (3, 32, 32)
    assert torch.bincount(human.test.targets).tolist() == [100] * 100
    assert torch.bincount(human.train.true_targets).tolist() == [450] * 100
    assert torch.bincount(human.validation.targets).tolist() == [50] * 100


def test_two_fifths_of_the_human_labels_are_wrong(human: Dataset):
    assert float(human.train.flipped.float().mean()) == pytest.approx(0.402, abs=0.005)
    assert not human.validation.flipped.any()


def test_the_statistics_normalise_the_images(human: Dataset):
    inputs, _ = human.train.batch(torch.arange(0, 45_000, 5))
    assert inputs.mean((0, 2, 3)).abs().max() < 0.02
    assert (inputs.std((0, 2, 3)) - 1).abs().max() < 0.02


def test_one_sample_a_class(human: Dataset):
    sampler = MicrobatchSampler(
        human.train, microbatches=2, microbatch_size=100, balance="true", augment=True
    )
    inputs, _ = next(sampler)
    assert inputs.shape == (200, 3, 32, 32)
    true = human.train.true_targets[sampler.last_indices].view(2, 100)
    assert all(row.unique().numel() == 100 for row in true)
