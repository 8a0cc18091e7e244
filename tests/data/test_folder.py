from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gafscope.data import load_data
from gafscope.data.folder import read_folder
from gafscope.errors import UserError


def write_images(root: Path, counts: dict[str, int], suffix: str = "png", size: int = 6) -> None:
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            colour = (40 * label, 10 * number, 200)
            Image.new("RGB", (size, size + 2), colour).save(root / name / f"{number}.{suffix}")


def test_train_and_test_folders_are_read_in_the_order_of_their_names(tmp_path: Path):
    write_images(tmp_path / "train", {"ant": 3, "bee": 2})
    write_images(tmp_path / "test", {"bee": 1})
    source = read_folder(tmp_path, image_size=4)
    assert source.inputs.shape == (5, 3, 4, 4)
    assert source.inputs.dtype == torch.uint8
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.inputs[4, :, 0, 0].tolist() == [40, 10, 200]
    assert source.test_labels.tolist() == [1]
    assert source.num_classes == 2


def test_without_a_test_folder_a_fixed_fifth_is_cut(tmp_path: Path):
    write_images(tmp_path, {"ant": 10, "bee": 20})
    first, other = (
        load_data("folder", path=tmp_path, image_size=4, seed=seed, validation=0.25)
        for seed in (1, 2)
    )
    assert torch.bincount(first.test.targets).tolist() == [2, 4]
    assert torch.equal(first.test.inputs, other.test.inputs)
    assert len(first.train) + len(first.validation) == 24


def test_grey_palette_and_jpeg_images_become_rgb_and_other_files_are_ignored(tmp_path: Path):
    write_images(tmp_path / "train", {"ant": 2}, suffix="JPG")
    (tmp_path / "train" / "bee").mkdir()
    Image.new("L", (9, 3), 77).save(tmp_path / "train/bee/grey.png")
    Image.new("P", (2, 2), 0).save(tmp_path / "train/bee/palette.gif")
    (tmp_path / "train/bee/notes.txt").write_text("no image")
    (tmp_path / "train/.hidden").mkdir()
    write_images(tmp_path / "test", {"ant": 1})
    source = read_folder(tmp_path, image_size=3)
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.inputs[2].unique().tolist() == [77]


def test_channel_statistics_are_those_of_the_training_images(tmp_path: Path):
    for name in ("train", "test"):
        write_images(tmp_path / name, {"ant": 4, "bee": 4})
    source = read_folder(tmp_path, image_size=4)
    pixels = source.inputs.double().numpy() / 255
    assert source.mean is not None
    assert source.std is not None
    np.testing.assert_allclose(source.mean, pixels.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(source.std[:2], pixels.std((0, 2, 3))[:2], atol=1e-6)
    # Blue is the same everywhere: a standard deviation of 0 would make NaN.
    assert float(source.std[2]) > 0


def test_the_path_lies_below_the_data_folder(tmp_path: Path):
    write_images(tmp_path / "pictures", {"ant": 10, "bee": 10})
    for keywords in (
        {"data_dir": tmp_path, "path": "pictures"},
        {"data_dir": tmp_path / "pictures"},
        {"data_dir": tmp_path / "elsewhere", "path": tmp_path / "pictures"},
    ):
        assert len(load_data("folder", image_size=4, **keywords).test) == 4
    with pytest.raises(UserError, match="'path' or with --data-dir"):
        load_data("folder")


def test_mistakes_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="absent' does not exist"):
        read_folder(tmp_path / "absent")
    with pytest.raises(UserError, match="image_size must be at least 1"):
        read_folder(tmp_path, image_size=0)
    write_images(tmp_path / "train", {"ant": 2})
    with pytest.raises(UserError, match="at least two classes, found 1"):
        read_folder(tmp_path)
    write_images(tmp_path / "train", {"bee": 0})
    with pytest.raises(UserError, match="bee' holds no images"):
        read_folder(tmp_path)


def test_a_broken_image_is_named(tmp_path: Path):
    write_images(tmp_path / "train", {"ant": 2, "bee": 2})
    image = tmp_path / "train/bee/1.png"
    image.write_bytes(image.read_bytes()[:50])
    with pytest.raises(UserError, match=r"bee/1\.png' cannot be read"):
        read_folder(tmp_path)


def test_the_test_folder_must_fit(tmp_path: Path):
    write_images(tmp_path / "train", {"ant": 2, "bee": 2})
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="holds no class folders"):
        read_folder(tmp_path)
    write_images(tmp_path / "test", {"wasp": 1})
    with pytest.raises(UserError, match="'wasp', which has no training images"):
        read_folder(tmp_path)
