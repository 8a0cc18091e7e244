from __future__ import annotations

import pytest
import torch

from gafscope.data import load_data
from gafscope.errors import UserError


def test_pixels_are_standard_normal_and_labels_uniform():
    data = load_data("white-noise", shape=(2, 16, 16), samples=5000, classes=5)
    pixels = data.train.inputs
    assert pixels.shape == (5000, 2, 16, 16)
    assert abs(float(pixels.mean())) < 0.01
    assert float(pixels.std()) == pytest.approx(1, abs=0.01)
    counts = torch.bincount(data.train.targets)
    # 1,000 each, standard deviation 28.
    assert (counts - 1000).abs().max() < 150
    assert (len(data.validation), len(data.test)) == (500, 500)
    assert not data.train.flipped.any()
    assert (data.num_classes, data.input_shape) == (5, (2, 16, 16))


def test_the_splits_are_different_draws_decided_by_the_seed():
    first, again, other = (load_data("white-noise", samples=20, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.test.targets, again.test.targets)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert not torch.equal(first.validation.inputs, first.test.inputs)
    assert not torch.equal(first.validation.inputs, first.train.inputs[:2])


def test_vectors_and_tiny_sizes_are_possible():
    data = load_data("white-noise", shape=(3,), samples=1, classes=2)
    assert data.train.inputs.shape == (1, 3)
    assert len(data.validation) == len(data.test) == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"samples": 0}, "samples .* at least 1, found 0"),
        ({"classes": 1}, "classes .* at least 2, found 1"),
        ({"shape": (3, 0)}, "shape .* at least 1, found 0"),
        ({"shape": ()}, "shape .* at least 1, found 0"),
    ],
)
def test_sizes_are_checked(options: dict[str, object], match: str):
    with pytest.raises(UserError, match=match):
        load_data("white-noise", **options)


def test_there_is_no_noise_on_noise():
    with pytest.raises(UserError, match=r"label_noise=0\.2"):
        load_data("white-noise", label_noise=0.2)
    with pytest.raises(UserError, match="subset=10"):
        load_data("white-noise", subset=10)
