"""What a data set is here: three splits of inputs and labels, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gafscope.errors import UserError


# eq=False: comparing tensors field by field has no single truth value.
@final
@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and labels of one split; n samples of one shape.

    Attributes:
        inputs: (n, *shape), uint8 images in 0..255, float32, or int64 tokens (n, t).
        targets: (n,) int64, the labels to train on; of tokens (n, t), one a position.
        true_targets: The labels before any noise, in the same shape.
        mean: (C,) channel means of `inputs / 255`, or None. Only for uint8 images (n, C, H, W).
        std: (C,) channel standard deviations of `inputs / 255`, or None together with `mean`.
        tasks: (n,) int64, the text, source or group that each sample is from; None where only
            the labels divide the samples.

    Raises:
        UserError: No samples, lengths that differ, a dtype that is none of the above, a negative
            label, or `mean` and `std` that do not fit the inputs.
    """

    inputs: Tensor
    targets: Tensor
    true_targets: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    tasks: Tensor | None = None

    def __post_init__(self) -> None:
        _check_labels(self)
        _check_inputs(self)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def flipped(self) -> Tensor:
        """Which samples the noise moved a label of: (n,) bool, `targets != true_targets`."""
        return (self.targets != self.true_targets).reshape(len(self), -1).any(1)

    def batch(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give samples the way a model takes them.

        Args:
            indices: (b,) int64 sample indices on any device; None for all samples in order.

        Returns:
            Inputs (b, *shape) float32, uint8 images as `(inputs / 255 - mean) / std`; and
            targets (b,) int64. Tokens (b, t) stay int64, with targets (b, t).
        """
        inputs, targets = self.inputs, self.targets
        if indices is not None:
            indices = indices.to(inputs.device)
            inputs, targets = inputs[indices], targets[indices]
        if inputs.dtype == torch.uint8:
            inputs = inputs.float().div_(255)
            if self.mean is not None and self.std is not None:
                inputs.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return inputs, targets

    def to(self, device: torch.device | str) -> Split:
        """Give the same split with every tensor on `device`."""
        return Split(
            self.inputs.to(device),
            self.targets.to(device),
            self.true_targets.to(device),
            None if self.mean is None else self.mean.to(device),
            None if self.std is None else self.std.to(device),
            None if self.tasks is None else self.tasks.to(device),
        )


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set, cut into training, validation and test samples.

    The validation split steers choices (checkpoints, schedules); the test split is only reported.

    Attributes:
        name: What `load_data` calls it.
        train: The samples to train on, label noise included.
        validation: Samples held out of the training data, with their original labels.
        test: Samples for the final report.
        num_classes: How many classes there are; labels are 0 .. num_classes - 1.
        input_shape: The shape of one input, e.g. (3, 32, 32).

    Raises:
        UserError: A label that is not below `num_classes`, or inputs of another shape.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for role in ("train", "validation", "test"):
            split: Split = getattr(self, role)
            largest = int(torch.maximum(split.targets.max(), split.true_targets.max()))
            if largest >= self.num_classes:
                raise UserError(
                    f"Labels of '{self.name}' must be 0..{self.num_classes - 1}, but its {role} "
                    f"split has the label {largest}: correct the labels or the number of classes."
                )
            shape = tuple(split.inputs.shape[1:])
            if shape != self.input_shape:
                raise UserError(
                    f"Inputs of '{self.name}' must have the shape {self.input_shape}, but its "
                    f"{role} split has {shape}: bring all splits to one shape."
                )

    def to(self, device: torch.device | str) -> Dataset:
        """Give the same data set with every tensor on `device`."""
        return Dataset(
            self.name,
            self.train.to(device),
            self.validation.to(device),
            self.test.to(device),
            self.num_classes,
            self.input_shape,
        )


def _check_labels(split: Split) -> None:
    count = len(split.inputs) if split.inputs.ndim else 0
    if count == 0:
        raise UserError("A split must hold at least one sample, but this one is empty: add data.")
    for name in ("targets", "true_targets"):
        labels: Tensor = getattr(split, name)
        # One a sample, or one a token.
        shape = split.inputs.shape if labels.ndim > 1 and _holds_tokens(split) else (count,)
        if labels.dtype != torch.int64 or labels.shape != shape:
            raise UserError(
                f"{name} must be one int64 label for each of the {count} inputs, found "
                f"{labels.dtype} of shape {tuple(labels.shape)}: give a tensor of shape "
                f"{tuple(shape)}."
            )
        if int(labels.min()) < 0:
            raise UserError(
                f"{name} must be 0 or larger, found {int(labels.min())}: "
                "drop unlabelled samples or renumber the classes from 0."
            )
    if split.targets.shape != split.true_targets.shape:
        raise UserError(
            "targets and true_targets must have one shape, found "
            f"{tuple(split.targets.shape)} and {tuple(split.true_targets.shape)}: give both one a "
            "sample, or both one a token."
        )
    tasks = split.tasks
    if tasks is not None and (tasks.dtype != torch.int64 or tasks.shape != (count,)):
        raise UserError(
            f"tasks must be one int64 number for each of the {count} inputs, found {tasks.dtype} "
            f"of shape {tuple(tasks.shape)}: give a tensor of shape ({count},)."
        )


def _holds_tokens(split: Split) -> bool:
    return split.inputs.dtype == torch.int64 and split.inputs.ndim == 2


def _check_inputs(split: Split) -> None:
    if split.inputs.dtype not in (torch.uint8, torch.float32) and not _holds_tokens(split):
        raise UserError(
            "inputs must be uint8 images, float32, or int64 tokens of shape (n, t), found "
            f"{split.inputs.dtype} of shape {tuple(split.inputs.shape)}: convert them, e.g. with "
            ".float()."
        )
    if split.mean is None and split.std is None:
        return
    if split.inputs.dtype != torch.uint8 or split.inputs.ndim != 4:
        raise UserError(
            "mean and std are for uint8 images (n, C, H, W), but the inputs are "
            f"{split.inputs.dtype} of shape {tuple(split.inputs.shape)}: normalise other inputs "
            "beforehand and leave mean and std out."
        )
    channels = (split.inputs.shape[1],)
    if any(part is None or part.shape != channels for part in (split.mean, split.std)):
        raise UserError(
            f"mean and std must both have the shape {channels}, one number a channel of the "
            "inputs: give both, or neither."
        )
