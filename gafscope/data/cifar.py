"""CIFAR-10 and CIFAR-100 from their official Python files (Krizhevsky, 2009)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from gafscope.data.assemble import Source
from gafscope.data.download import OFFICIAL_URL, install
from gafscope.data.files import Place, missing_file, read_checked
from gafscope.data.safe_pickle import load_arrays
from gafscope.errors import UserError


@final
@dataclass(frozen=True)
class CifarLayout:
    """Which files make up a data set of the CIFAR family.

    Attributes:
        folder: Folder of the files, in the archive and in the data folder.
        archive: The archive's name.
        archive_md5: The archive's checksum.
        train: Training files, in order.
        test: Test files, in order.
        md5: Checksum of every file.
        label_key: Which entry of a file holds the labels.
        num_classes: How many classes there are.
        mean: Channel means of the training images in 0..1.
        std: Channel standard deviations of the same.
    """

    folder: str
    archive: str
    archive_md5: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    md5: Mapping[str, str]
    label_key: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CIFAR10 = CifarLayout(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    label_key="labels",
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = CifarLayout(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    train=("train",),
    test=("test",),
    md5={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    label_key="fine_labels",
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def read_cifar(place: Place, layout: CifarLayout) -> Source:
    """Read all images, fetching the files first where that is allowed and needed.

    Args:
        place: Where the files are.
        layout: Which files.

    Returns:
        uint8 images (n, 3, 32, 32) with int64 labels.

    Raises:
        UserError: A file is missing, altered or not in the official form.
    """
    folder = place.root / layout.folder
    lacking = [name for name in (*layout.train, *layout.test) if not (folder / name).exists()]
    if lacking and place.download:
        install(
            place.root,
            base_url=place.download_url or OFFICIAL_URL,
            archive=layout.archive,
            md5=layout.archive_md5,
            folder=layout.folder,
            files=layout.md5,
        )
    inputs, labels = _read_files(place, layout, layout.train)
    test_inputs, test_labels = _read_files(place, layout, layout.test)
    return Source(
        inputs,
        labels,
        test_inputs,
        test_labels,
        layout.num_classes,
        mean=torch.tensor(layout.mean),
        std=torch.tensor(layout.std),
    )


def _read_files(place: Place, layout: CifarLayout, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    parts = [_read_file(place, layout, name) for name in names]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _read_file(place: Place, layout: CifarLayout, name: str) -> tuple[Tensor, Tensor]:
    path = place.root / layout.folder / name
    if not path.exists():
        raise missing_file(
            path,
            place,
            f"Unpack the official {layout.archive} from {OFFICIAL_URL} there, or have it fetched "
            "with --download (download=True)",
        )
    data = read_checked(
        path, layout.md5[name], "Delete it and fetch it again with --download (download=True)"
    )
    return _images_and_labels(load_arrays(data, str(path)), layout, path)


def _images_and_labels(content: Any, layout: CifarLayout, path: Path) -> tuple[Tensor, Tensor]:
    entries = content if isinstance(content, dict) else {}
    rows, labels = entries.get("data"), entries.get(layout.label_key)
    if not (
        isinstance(rows, np.ndarray)
        and rows.dtype == np.uint8
        and rows.shape[1:] == (3072,)
        and isinstance(labels, list)
        and len(labels) == len(rows)
    ):
        raise UserError(
            f"'{path}' must hold a uint8 array 'data' of 3,072 columns and as many "
            f"'{layout.label_key}' as it has rows, but does not: put the official file there."
        )
    # A copy, because an array inside a pickle need not be writable and a tensor must be.
    images = torch.from_numpy(np.array(rows)).view(-1, 3, 32, 32)
    return images, torch.tensor(labels, dtype=torch.int64)
