"""Images in folders, one folder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gafscope.data.assemble import Source
from gafscope.data.partition import stratified_holdout
from gafscope.errors import UserError

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
_TEST_SHARE = 0.2
_TEST_SEED = 0


def read_folder(path: str | Path, image_size: int = 32) -> Source:
    """Read `path/train/<class>/*` and `path/test/<class>/*` as square RGB images.

    Without a `test` folder a fixed fifth of the training images is the test set; without a `train`
    folder the classes are looked for in `path` itself. Classes are numbered in the order of their
    names. Images are resized to a square, whatever their proportions.

    Args:
        path: The folder.
        image_size: Side of the square, in pixels.

    Returns:
        uint8 images (n, 3, image_size, image_size), with the channel statistics of the training
        images.

    Raises:
        UserError: No such folder, fewer than two classes, a class without images, a test class
            that has no training images, or an image that cannot be read.
    """
    root = Path(path).expanduser()
    if image_size < 1:
        raise UserError(f"image_size must be at least 1 pixel, found {image_size}: raise it.")
    if not root.is_dir():
        raise UserError(f"The image folder '{root}' does not exist: correct the option 'path'.")
    has_train = (root / "train").is_dir()
    train_root = root / "train" if has_train else root
    classes = _class_names(train_root)
    if len(classes) < 2:
        raise UserError(
            f"'{train_root}' must hold one folder for each of at least two classes, found "
            f"{len(classes)}: sort the images into folders named after their classes."
        )
    inputs, labels = _read_classes(train_root, classes, classes, image_size)
    if has_train and (root / "test").is_dir():
        names = _class_names(root / "test")
        test_inputs, test_labels = _read_classes(root / "test", names, classes, image_size)
    else:
        generator = torch.Generator().manual_seed(_TEST_SEED)
        kept, held = stratified_holdout(labels, _TEST_SHARE, generator)
        test_inputs, test_labels = inputs[held], labels[held]
        inputs, labels = inputs[kept], labels[kept]
    mean, std = _channel_statistics(inputs)
    return Source(inputs, labels, test_inputs, test_labels, len(classes), mean, std)


def _class_names(root: Path) -> list[str]:
    return sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _read_classes(
    root: Path, names: list[str], classes: list[str], image_size: int
) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for name in names:
        if name not in classes:
            raise UserError(
                f"'{root}' has the class '{name}', which has no training images: add some, or "
                "remove the folder."
            )
        files = sorted(file for file in (root / name).iterdir() if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise UserError(
                f"The class folder '{root / name}' holds no images ({', '.join(sorted(_SUFFIXES))})"
                ": add some, or remove the folder."
            )
        images += [_read_image(file, image_size) for file in files]
        labels += [classes.index(name)] * len(files)
    if not images:
        raise UserError(f"'{root}' holds no class folders: add some, or remove it.")
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)


def _read_image(file: Path, image_size: int) -> Tensor:
    try:
        with Image.open(file) as image:
            square = image.convert("RGB").resize((image_size, image_size))
    # Pillow reports damage as OSError or SyntaxError, by the format.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"The image '{file}' cannot be read ({error}): replace or remove it."
        ) from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `images / 255` by channel, from exact integer counts."""
    channels = images.transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
    levels = torch.arange(256, dtype=torch.float64)
    mean = counts @ levels / channels.shape[1]
    variance = counts @ levels.square() / channels.shape[1] - mean.square()
    # A channel without contrast would divide by zero: half a grey level is below any real one.
    std = variance.clamp(min=0.25).sqrt()
    return (mean / 255).float(), (std / 255).float()
