from __future__ import annotations

import io
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from gafscope.data import MicrobatchSampler, Split, crop_and_flip
from gafscope.errors import UserError


def flat_split(n: int = 60, classes: int = 3) -> Split:
    true = torch.arange(n) % classes
    given = true.clone()
    given[: n // 6] = (given[: n // 6] + 1) % classes
    return Split(torch.arange(float(n))[:, None], given, true)


def image_split(n: int = 24) -> Split:
    labels = torch.arange(n) % 3
    images = torch.randint(256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return Split(
        images.to(torch.uint8), labels, labels, torch.full((3,), 0.5), torch.full((3,), 0.25)
    )


def sampler(split: Split, k: int = 2, u: int = 6, **options: Any) -> MicrobatchSampler:
    return MicrobatchSampler(split, microbatches=k, microbatch_size=u, **options)


def draw(source: MicrobatchSampler, count: int) -> list[Tensor]:
    drawn = []
    for _ in range(count):
        next(source)
        drawn.append(source.last_indices)
    return drawn


@pytest.mark.parametrize("balance", ["iid", "given", "true"])
def test_a_macrobatch_is_what_the_indices_say_and_has_no_sample_twice(balance: str):
    split = flat_split()
    source = sampler(split, balance=balance)
    assert iter(source) is source
    for _ in range(20):
        inputs, targets = next(source)
        indices = source.last_indices
        assert inputs.shape == (12, 1)
        assert len(indices.unique()) == 12
        assert torch.equal(inputs[:, 0].long(), indices)
        assert torch.equal(targets, split.targets[indices])


@pytest.mark.parametrize("balance", ["given", "true"])
def test_every_microbatch_is_balanced_by_the_labels_that_were_asked_for(balance: str):
    split = flat_split()
    labels = {"given": split.targets, "true": split.true_targets}
    unbalanced = 0
    for indices in draw(sampler(split, k=3, balance=balance), 15):
        for microbatch in indices.view(3, 6):
            assert torch.bincount(labels[balance][microbatch], minlength=3).tolist() == [2, 2, 2]
            other = labels["true" if balance == "given" else "given"][microbatch]
            unbalanced += torch.bincount(other, minlength=3).tolist() != [2, 2, 2]
    assert unbalanced > 0


def test_single_class_microbatches_are_of_different_classes():
    split = flat_split()
    seen = torch.zeros(3, dtype=torch.int64)
    for indices in draw(sampler(split, k=2, balance="single"), 30):
        classes = [split.targets[row].unique().tolist() for row in indices.view(2, 6)]
        assert all(len(own) == 1 for own in classes)
        assert classes[0] != classes[1]
        seen[classes[0][0]] += 1
        assert len(indices.unique()) == 12
    assert (seen > 0).all(), "the first microbatch is of any class"


def test_more_single_class_microbatches_than_classes():
    split = flat_split()
    for indices in draw(sampler(split, k=5, u=4, balance="single"), 10):
        rows = [split.targets[row].unique() for row in indices.view(5, 4)]
        counts = torch.bincount(torch.cat(rows), minlength=3)
        assert sorted(counts.tolist()) == [1, 2, 2]
        assert len(indices.unique()) == 20


@pytest.mark.parametrize(("balance", "place"), [("first-flipped", 0), ("last-flipped", 3)])
def test_one_microbatch_of_wrong_labels(balance: str, place: int):
    split = flat_split()
    used = []
    for indices in draw(sampler(split, k=4, u=5, balance=balance), 10):
        wrong = split.flipped[indices].view(4, 5)
        assert wrong[place].all()
        assert int(wrong.sum()) == 5
        assert len(indices.unique()) == 20
        used.append(indices.view(4, 5)[place])
    assert len(torch.cat(used).unique()) == int(split.flipped.sum())


@pytest.mark.parametrize("balance", ["iid", "true"])
def test_a_pass_shows_every_sample_once(balance: str):
    drawn = draw(sampler(flat_split(), balance=balance), 15)
    passes = [torch.cat(drawn[start : start + 5]) for start in (0, 5, 10)]
    for one in passes:
        assert torch.equal(one.sort()[0], torch.arange(60))
    assert not any(torch.equal(one, two) for one, two in pairwise(passes))


def test_a_pool_is_shuffled_when_a_macrobatch_no_longer_fits():
    drawn = draw(sampler(flat_split(n=10, classes=2), k=2, u=4), 200)
    counts = torch.bincount(torch.cat(drawn), minlength=10)
    # 160 each: the two that a pass leaves over are others every time.
    assert counts.min() > 130
    assert all(len(indices.unique()) == 8 for indices in drawn)


def test_a_small_class_is_repeated_sooner_than_a_large_one():
    labels = torch.tensor([0] * 4 + [1] * 40)
    split = Split(torch.zeros(44, 1), labels, labels)
    seen = torch.bincount(torch.cat(draw(sampler(split, u=2, balance="given"), 20)), minlength=44)
    assert seen[:4].tolist() == [10] * 4
    assert seen[4:].tolist() == [1] * 40


def test_the_seed_decides_and_augmentation_does_not_change_the_indices():
    split = image_split()
    first, again, other = (draw(sampler(split, seed=s), 4) for s in (1, 1, 2))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    augmented = draw(sampler(split, seed=1, augment=True), 4)
    assert all(map(torch.equal, first, augmented))


def test_augmentation_is_crop_and_flip_of_normalised_images():
    split = image_split()
    source = sampler(split, augment=True, seed=5)
    state = source.state_dict()["augment_generator"]
    inputs, _ = next(source)
    generator = torch.Generator()
    generator.set_state(state)
    plain = split.batch(source.last_indices)[0]
    assert torch.equal(inputs, crop_and_flip(plain, generator))
    assert not torch.equal(inputs, plain)


@pytest.mark.parametrize("balance", ["iid", "given", "single"])
def test_the_state_continues_bit_by_bit_through_a_file(balance: str):
    options: dict[str, Any] = {"balance": balance, "augment": True}
    source = sampler(image_split(), k=1, **options)
    before = draw(source, 3)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    rest = [next(source) for _ in range(9)]
    resumed = sampler(image_split(), k=1, seed=99, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(resumed.last_indices, before[-1])
    for expected, labels in rest:
        inputs, targets = next(resumed)
        assert torch.equal(inputs, expected)
        assert torch.equal(targets, labels)


def test_a_state_does_not_change_with_its_sampler():
    source = sampler(flat_split())
    state = source.state_dict()
    first = draw(source, 5)
    source.load_state_dict(state)
    again = draw(source, 5)
    source.load_state_dict(state)
    assert all(map(torch.equal, first, again))
    assert torch.equal(draw(source, 1)[0], first[0])


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (sampler(flat_split(), k=3), "saved with microbatches=3, but this sampler has .*=2"),
        (sampler(flat_split(), balance="true"), "balance='true'"),
        (sampler(flat_split(n=66)), "samples=66"),
    ],
)
def test_a_foreign_state_is_refused(other: MicrobatchSampler, match: str):
    with pytest.raises(UserError, match=match):
        sampler(flat_split()).load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k": 0}, "microbatches must be at least 1, found 0"),
        ({"u": 0}, "microbatch_size must be at least 1, found 0"),
        ({"k": 7, "u": 9}, "63 samples, but there are 60"),
        ({"balance": "givn"}, "Unknown balance 'givn'. Did you mean 'given'"),
        ({"u": 7, "balance": "given"}, "classes, 3, .*found 7: use 6 or 9"),
        ({"u": 2, "balance": "true"}, "found 2: use 3, or balance='iid'"),
        ({"augment": True}, r"\(n, C, H, W\), found inputs of shape \(60, 1\)"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        sampler(flat_split(), **options)


def test_a_class_with_too_few_samples_is_named():
    labels = torch.tensor([0] * 10 + [1] * 3 + [2] * 10)
    split = Split(torch.zeros(23, 1), labels, labels)
    with pytest.raises(UserError, match=r"Class 1 has 3 samples by its true .* needs 4"):
        sampler(split, u=6, balance="true")
    absent = Split(torch.zeros(20, 1), labels[labels != 1], labels[labels != 1])
    with pytest.raises(UserError, match="Class 1 has 0 samples"):
        sampler(absent, u=6, balance="true")
    with pytest.raises(UserError, match=r"Class 1 has 3 samples by its given .* need 4"):
        sampler(split, u=4, balance="single")


def test_too_few_wrong_labels_are_named():
    labels = torch.arange(23) % 3
    split = Split(torch.zeros(23, 1), labels, labels)
    with pytest.raises(UserError, match=r"6 samples with a wrong label .* there are 0 and 23"):
        sampler(split, balance="first-flipped")


def test_balanced_indices_over_many_classes_cost_little():
    labels = torch.arange(45_000) % 100
    source = sampler(Split(torch.zeros(45_000, 1), labels, labels), u=100, balance="given")
    next(source)
    started = time.perf_counter()
    draw(source, 500)
    # Under 0.1 ms here; the bound leaves room for a busy machine.
    assert (time.perf_counter() - started) / 500 < 2e-3


@pytest.mark.cuda
def test_cuda_draws_the_same_macrobatches():
    split = image_split()
    here, there = (sampler(part, augment=True) for part in (split, split.to("cuda")))
    for _ in range(5):
        (inputs, targets), (on_cuda, labels) = next(here), next(there)
        assert on_cuda.is_cuda
        torch.testing.assert_close(on_cuda.cpu(), inputs)
        assert torch.equal(labels.cpu(), targets)
