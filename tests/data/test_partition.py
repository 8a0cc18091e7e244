from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gafscope.data.partition import balanced_subset, stratified_holdout
from gafscope.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uneven_labels() -> Tensor:
    return torch.arange(4).repeat_interleave(torch.tensor([50, 31, 10, 1]))


def test_holdout_keeps_proportions_and_partitions_the_samples():
    labels = uneven_labels()
    kept, held = stratified_holdout(labels, 0.2, seeded())
    assert torch.equal(torch.cat([kept, held]).sort()[0], torch.arange(len(labels)))
    assert torch.bincount(labels[held], minlength=4).tolist() == [10, 6, 2, 0]


def test_holdout_gives_the_rounded_total_by_largest_remainders():
    labels = torch.arange(3).repeat_interleave(torch.tensor([14, 15, 16]))
    _, held = stratified_holdout(labels, 0.1, seeded())
    # Exact: 1.4, 1.5, 1.6 of 4.5; round(4.5) = 4, so one of the three gets a second sample.
    assert torch.bincount(labels[held]).tolist() == [1, 1, 2]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(2, 30), min_size=2, max_size=6), st.floats(0.3, 0.9))
def test_every_class_keeps_a_sample(sizes: list[int], share: float):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    kept, held = stratified_holdout(labels, share, seeded())
    assert torch.bincount(labels[kept], minlength=len(sizes)).min() >= 1
    assert len(kept) + len(held) == len(labels)


def test_the_seed_decides_who_is_held_out():
    labels = uneven_labels()
    first, same, other = (stratified_holdout(labels, 0.2, seeded(s))[1] for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_holding_out_nothing_is_an_error():
    with pytest.raises(UserError, match="holds out none"):
        stratified_holdout(torch.arange(3), 0.5, seeded())


def test_subset_is_balanced_and_random():
    labels = torch.arange(90) % 3
    first, other = (balanced_subset(labels, 12, 3, seeded(s)) for s in (1, 2))
    assert torch.bincount(labels[first]).tolist() == [4, 4, 4]
    assert len(first.unique()) == 12
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("size", "match"),
    [(10, "use e.g. 9"), (0, "found 0: use e.g. 3"), (-3, "found -3"), (36, "class 2 has 5.*15")],
)
def test_unfit_subsets_name_a_usable_size(size: int, match: str):
    labels = torch.arange(3).repeat_interleave(torch.tensor([20, 20, 5]))
    with pytest.raises(UserError, match=match):
        balanced_subset(labels, size, 3, seeded())
