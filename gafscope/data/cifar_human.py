"""CIFAR-10N and CIFAR-100N: the CIFAR images with labels that people gave.

Wei et al., "Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations"
(ICLR 2022, arXiv 2110.12088). The labels are under CC BY-NC 4.0.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from gafscope.data.assemble import Source
from gafscope.data.cifar import CIFAR10, CIFAR100, CifarLayout, read_cifar
from gafscope.data.files import Place, missing_file, read_checked
from gafscope.errors import UserError, unknown_name


@final
@dataclass(frozen=True)
class HumanLayout:
    """Which file holds the human labels, and what is in it.

    Attributes:
        file: Its path below the data folder.
        md5: Its checksum, or None where none is known.
        keys: The label sets that it offers, the default one first.
        images: The files with the images.
    """

    file: str
    md5: str | None
    keys: tuple[str, ...]
    images: CifarLayout


CIFAR10N = HumanLayout(
    file="cifar-n/CIFAR-10_human.pt",
    md5=None,
    keys=("worse_label", "aggre_label", "random_label1", "random_label2", "random_label3"),
    images=CIFAR10,
)
CIFAR100N = HumanLayout(
    file="cifar-n/CIFAR-100_human.pt",
    md5="a67b45c1d7992051865b5c755bd68bb1",
    keys=("noisy_label",),
    images=CIFAR100,
)

_REMEDY = "Put the official file from https://github.com/UCSC-REAL/cifar-10-100n (data/) there"


def read_cifar_human(place: Place, layout: HumanLayout, human: str | None = None) -> Source:
    """Read the images and both label sets.

    Args:
        place: Where the files are. The human labels are never downloaded.
        layout: Which files.
        human: Which human labels: for CIFAR-10N "worse_label" (the default, 40% noise),
            "aggre_label" (9%) or "random_label1" .. "random_label3" (17-18%).

    Returns:
        The source, with clean `labels` and noisy `human_labels`.

    Raises:
        UserError: A file is missing or altered, the label set is unknown, or the file's clean
            labels are not those of the images.
    """
    key = human or layout.keys[0]
    if key not in layout.keys:
        raise unknown_name("human label set", key, layout.keys)
    path = place.root / layout.file
    if not path.exists():
        raise missing_file(path, place, _REMEDY)
    content = _load(read_checked(path, layout.md5, _REMEDY), path)
    source = read_cifar(place, layout.images)
    clean, noisy = (_labels(content, name, path) for name in ("clean_label", key))
    if not torch.equal(clean, source.labels):
        raise UserError(
            f"The clean_label of '{path}' must equal the training labels of "
            f"'{layout.images.folder}', but does not: the labels would go to the wrong images. "
            f"{_REMEDY}."
        )
    if noisy.shape != clean.shape:
        raise UserError(f"'{path}' must have one {key} for each of the {len(clean)} images.")
    return replace(source, human_labels=noisy)


def _load(data: bytes, path: Path) -> Mapping[str, Any]:
    wanted = _array_globals()
    # What the caller has registered stays registered: leaving the context removes all it was given.
    known = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals([item for item in wanted if item not in known]):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # A damaged file can raise nearly anything, some of it without a message.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"'{path}' is not a PyTorch file of NumPy arrays, the only kind that is read here "
            f"({reason}). {_REMEDY}."
        ) from error
    return content if isinstance(content, dict) else {}


def _array_globals() -> list[Any]:
    reconstruct = np.empty(0).__reduce__()[0]
    # NumPy 2 moved the module: a file names the path of the version that wrote it.
    paths = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    int64 = type(np.dtype(np.int64))
    return [*((reconstruct, path) for path in paths), np.ndarray, np.dtype, int64]


def _labels(content: Mapping[str, Any], key: str, path: Path) -> Tensor:
    values = content.get(key)
    if not isinstance(values, np.ndarray) or values.dtype != np.int64:
        raise UserError(f"'{path}' has no int64 array '{key}'. {_REMEDY}.")
    return torch.from_numpy(values.copy())
