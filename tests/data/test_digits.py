from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from gafscope.data import load_data
from gafscope.data.digits import read_digits


def test_every_digit_is_there_once_and_standardised():
    source = read_digits()
    assert source.inputs.shape[1:] == (1, 8, 8)
    assert source.inputs.mean().abs() < 1e-6
    assert float(source.inputs.std()) == pytest.approx(1, abs=1e-6)
    pixels = torch.tensor(load_digits().data, dtype=torch.float32)
    ours = torch.cat([source.inputs, source.test_inputs]).flatten(1)
    # Back to 0..16 by two known grey levels: 0 is the smallest, 16 the largest.
    levels = (ours - ours.min()) / (ours.max() - ours.min()) * 16
    assert sorted(map(tuple, levels.round().tolist())) == sorted(map(tuple, pixels.tolist()))


def test_the_test_split_is_a_stratified_fifth_whatever_the_seed():
    first, other = load_data("digits", seed=1), load_data("digits", seed=2)
    assert len(first.test) == round(0.2 * 1797)
    assert torch.equal(first.test.inputs, other.test.inputs)
    assert torch.equal(first.test.targets, other.test.targets)
    counts = torch.bincount(first.test.targets)
    assert counts.min() >= 34
    assert counts.max() <= 37
    assert first.num_classes == 10
