from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gafscope.data import Dataset
from gafscope.data.assemble import Source, assemble
from gafscope.errors import UserError


def source() -> Source:
    labels = torch.arange(200) % 4
    return Source(
        # The first number of a sample says which one it is.
        torch.arange(200.0)[:, None].repeat(1, 3),
        labels,
        torch.full((8, 3), -1.0),
        torch.arange(8) % 4,
        num_classes=4,
    )


def build(seed: int = 0, label_noise: float = 0.0, subset: int | None = None) -> Dataset:
    return assemble(
        "d", source(), label_noise=label_noise, validation=0.1, subset=subset, seed=seed
    )


def members(dataset: Dataset, role: str) -> list[int]:
    return getattr(dataset, role).inputs[:, 0].long().tolist()


def test_training_and_validation_are_disjoint_complete_and_stratified():
    dataset = build()
    train, validation = members(dataset, "train"), members(dataset, "validation")
    assert sorted(train + validation) == list(range(200))
    assert torch.bincount(dataset.validation.targets).tolist() == [5, 5, 5, 5]
    assert dataset.input_shape == (3,)


def test_noise_is_on_the_training_split_only_and_the_originals_are_kept():
    dataset = build(label_noise=0.4)
    assert int(dataset.train.flipped.sum()) == round(0.4 * 180)
    for split in (dataset.train, dataset.validation, dataset.test):
        if split is not dataset.test:
            assert torch.equal(split.true_targets, split.inputs[:, 0].long() % 4)
        if split is not dataset.train:
            assert not split.flipped.any()


def test_the_noise_does_not_move_the_cut():
    assert members(build(label_noise=0.0), "train") == members(build(label_noise=0.5), "train")


def test_the_seed_decides_cut_and_noise_but_not_the_test_split():
    first, again, other = build(1, 0.3), build(1, 0.3), build(2, 0.3)
    assert members(first, "validation") == members(again, "validation")
    assert torch.equal(first.train.targets, again.train.targets)
    assert members(first, "validation") != members(other, "validation")
    assert torch.equal(first.test.inputs, other.test.inputs)
    assert torch.equal(first.test.targets, other.test.targets)


def test_a_subset_is_taken_before_the_cut():
    dataset = build(subset=40)
    assert len(dataset.train) + len(dataset.validation) == 40
    both = torch.cat([dataset.train.targets, dataset.validation.targets])
    assert torch.bincount(both).tolist() == [10, 10, 10, 10]
    assert len(dataset.test) == 8


def test_human_labels_go_to_the_training_split_only():
    human = replace(source(), human_labels=(torch.arange(200) + 1) % 4)
    dataset = assemble("d", human, label_noise=0.0, validation=0.1, subset=None, seed=0)
    assert bool(dataset.train.flipped.all())
    assert torch.equal(dataset.train.targets, (dataset.train.inputs[:, 0].long() + 1) % 4)
    assert not dataset.validation.flipped.any()


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_out_of_range_are_refused(label: int):
    faulty = source()
    faulty.labels[7] = label
    with pytest.raises(UserError, match=str(label)):
        assemble("d", faulty, label_noise=0.2, validation=0.1, subset=None, seed=0)
