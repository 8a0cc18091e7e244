"""Macrobatches that a new process finds again where the old one left them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from trainer_parts import same, sampler

from gafscope.errors import UserError
from gafscope.trainer.batches import Batches

DATA = TensorDataset(torch.arange(20.0))


def loader() -> DataLoader:
    return DataLoader(DATA, batch_size=4, shuffle=True)


def take(batches: Batches, count: int, draws: int = 0) -> list:
    taken = []
    for _ in range(count):
        taken.append(next(batches))
        torch.rand(draws)
    return taken


def test_a_list_is_started_anew_when_it_ends():
    assert take(Batches([1, 2, 3], seed=0), 7) == [1, 2, 3, 1, 2, 3, 1]


def test_winding_forward_gives_what_came_next():
    batches = Batches([1, 2, 3], seed=0)
    batches.wind(5)
    assert take(batches, 3) == [3, 1, 2]


@pytest.mark.parametrize("steps", [0, 3, 5, 11])
def test_a_shuffling_loader_is_found_again_whatever_dropout_drew(steps):
    torch.manual_seed(1)
    whole = take(Batches(loader(), seed=4), 20, draws=3)
    torch.manual_seed(2)
    resumed = Batches(loader(), seed=4)
    resumed.wind(steps)
    assert same(take(resumed, 20 - steps), whole[steps:])
    assert not same(whole[:5], whole[5:10])
    assert not same(take(Batches(loader(), seed=5), 5), whole[:5])


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    take(Batches(loader(), seed=0), 7)
    assert torch.equal(torch.rand(2), expected)


def test_the_generator_comes_back_when_the_source_fails():
    class Broken:
        def __iter__(self):
            torch.rand(5)
            raise OSError("gone")

    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with pytest.raises(OSError, match="gone"):
        next(Batches(Broken(), seed=0))
    assert torch.equal(torch.rand(2), expected)


def test_a_source_that_knows_its_place_is_not_wound():
    whole = Batches(sampler(2), seed=0)
    taken = take(whole, 4)
    state = whole.state_dict()
    following = take(whole, 3)
    resumed = Batches(sampler(2), seed=0)
    resumed.load_state_dict(state)
    resumed.wind(4)
    assert same(take(resumed, 3), following)
    assert not same(taken[:3], following)


def test_a_source_of_the_other_kind_is_refused():
    place = Batches(sampler(2), seed=0).state_dict()
    with pytest.raises(UserError, match="without a state_dict"):
        Batches([1], seed=0).load_state_dict(place)
    with pytest.raises(UserError, match="with a state_dict"):
        Batches(sampler(2), seed=0).load_state_dict({})


def test_nothing_at_all_and_a_spent_generator_are_told_apart():
    with pytest.raises(UserError, match="no macrobatch at all"):
        next(Batches([], seed=0))
    batches = Batches(iter([1, 2]), seed=0)
    assert take(batches, 2) == [1, 2]
    with pytest.raises(UserError, match="generator"):
        next(batches)
