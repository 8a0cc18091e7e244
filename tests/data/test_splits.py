from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gafscope.data import Dataset, Split
from gafscope.errors import UserError


def labels(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def image_split() -> Split:
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2) * 10
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1.0, 2.0])
    return Split(images, labels(0, 1), labels(1, 1), mean, std)


def test_uint8_images_are_normalised_channel_by_channel():
    split = image_split()
    inputs, targets = split.batch()
    assert inputs.dtype == torch.float32
    assert targets.tolist() == [0, 1]
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        expected = (split.inputs[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(inputs[:, channel].double(), expected, atol=1e-6, rtol=1e-6)


def test_uint8_images_without_statistics_are_scaled_to_one():
    images = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert Split(images, labels(0), labels(0)).batch()[0].unique().tolist() == [1.0]


def test_float_inputs_pass_unchanged_and_a_batch_leaves_the_data_alone():
    values = torch.randn(3, 5)
    split = Split(values, labels(0, 1, 2), labels(0, 1, 2))
    assert torch.equal(split.batch()[0], values)
    images = image_split()
    before = images.inputs.clone()
    images.batch(labels(0))
    assert torch.equal(images.inputs, before)


def test_indices_choose_rows_in_their_order():
    split = Split(torch.arange(4.0)[:, None], labels(3, 2, 1, 0), labels(3, 2, 1, 0))
    inputs, targets = split.batch(labels(2, 0, 2))
    assert inputs[:, 0].tolist() == [2, 0, 2]
    assert targets.tolist() == [1, 3, 1]


def test_flipped_length_and_moving():
    split = image_split().to("cpu")
    assert split.flipped.tolist() == [True, False]
    assert len(split) == 2
    assert split.mean is not None


@pytest.mark.parametrize(
    ("inputs", "targets", "match"),
    [
        (torch.empty(0, 3), labels(), "empty"),
        (torch.zeros(3, 2), labels(0, 1), "each of the 3 inputs"),
        (torch.zeros(2, 2), torch.tensor([0.0, 1.0]), "int64"),
        (torch.zeros(2, 2), labels(0, -1), "found -1"),
        (torch.zeros(2, 2, dtype=torch.float64), labels(0, 1), "float64"),
    ],
)
def test_faulty_splits_are_refused(inputs: Tensor, targets: Tensor, match: str):
    with pytest.raises(UserError, match=match):
        Split(inputs, targets, targets)


def test_true_targets_are_checked_too():
    with pytest.raises(UserError, match="true_targets"):
        Split(torch.zeros(2, 2), labels(0, 1), labels(0, 1, 2))


@pytest.mark.parametrize(
    ("inputs", "mean", "std", "match"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(3), torch.ones(3), "float32"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3), None, "both"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(1), torch.ones(1), r"\(3,\)"),
    ],
)
def test_statistics_must_fit(inputs: Tensor, mean: Tensor, std: Tensor | None, match: str):
    with pytest.raises(UserError, match=match):
        Split(inputs, labels(0, 1), labels(0, 1), mean, std)


def test_a_dataset_checks_labels_and_shapes_of_every_split():
    good = Split(torch.zeros(2, 3), labels(0, 1), labels(0, 1))
    high = Split(torch.zeros(2, 3), labels(0, 1), labels(0, 2))
    wide = Split(torch.zeros(2, 4), labels(0, 1), labels(0, 1))
    assert Dataset("d", good, good, good, 2, (3,)).to("cpu").num_classes == 2
    with pytest.raises(UserError, match=r"0\.\.1.*train split has the label 2"):
        Dataset("d", high, good, good, 2, (3,))
    with pytest.raises(UserError, match=r"\(3,\).*test split has \(4,\)"):
        Dataset("d", good, good, wide, 2, (3,))
