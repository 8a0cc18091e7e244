"""The one way to a data set: by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gafscope.data.assemble import Source, assemble
from gafscope.data.cifar import CIFAR10, CIFAR100, read_cifar
from gafscope.data.cifar_human import CIFAR10N, CIFAR100N, read_cifar_human
from gafscope.data.digits import read_digits
from gafscope.data.files import Place, find_place
from gafscope.data.folder import read_folder
from gafscope.data.splits import Dataset
from gafscope.data.text import text
from gafscope.data.white_noise import white_noise
from gafscope.errors import UserError, unknown_name

_OPTIONS: dict[str, tuple[str, ...]] = {
    "digits": (),
    "cifar10": (),
    "cifar100": (),
    "cifar10n": ("human",),
    "cifar100n": (),
    "white-noise": ("shape", "samples", "classes"),
    "folder": ("path", "image_size"),
    "text": ("context", "size"),
}


def dataset_names() -> tuple[str, ...]:
    """Give every name that `load_data` takes.

    Example:
        >>> "digits" in dataset_names()
        True
    """
    return tuple(_OPTIONS)


def load_data(
    name: str,
    *,
    data_dir: str | Path | None = None,
    label_noise: float = 0.0,
    validation: float = 0.1,
    subset: int | None = None,
    seed: int = 0,
    download: bool = False,
    download_url: str | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Dataset:
    """Load a data set by its name.

    Only the training split carries label noise. The validation split is cut from the training data
    before and keeps its clean labels; the test split never depends on `seed` (white noise apart).

    Args:
        name: "digits", "cifar10", "cifar100", "cifar10n", "cifar100n" (training labels by people),
            "white-noise", "folder" or "text" (windows of bytes, to predict the next one in).
        data_dir: Folder of the data files; by default the one that the environment variable
            GAFSCOPE_DATA names, else ~/.cache/gafscope/data. Of "text" a file, or a folder whose
            files are tasks of their own; by default texts that are installed with Python.
        label_noise: Share of training labels moved to another class, drawn uniformly; in [0, 1).
        validation: Share of the training data held out, stratified by class (of "text": whole
            passages, stratified by task); in (0, 1).
        subset: Use a class-balanced part of the training data of this size, validation included;
            a multiple of the number of classes.
        seed: Decides subset, validation split and noise.
        download: Fetch missing CIFAR files.
        download_url: Fetch them from this address, which the archive's name is appended to.
        device: Where the tensors go.
        **options: "cifar10n": `human`, which labels ("worse_label", "aggre_label",
            "random_label1" .. "random_label3"). "white-noise": `shape`, `samples`, `classes`.
            "folder": `path` (below `data_dir` where that is given, and `data_dir` itself when left
            out) and `image_size`. "text": `context`, bytes a window, and `size`, bytes that are
            used of each text.

    Returns:
        The data set.

    Raises:
        UserError: An unknown name or option, a value out of range, or files that are missing,
            altered or unfit.

    Example:
        >>> digits = load_data("digits", label_noise=0.4)
        >>> len(digits.train), len(digits.validation), len(digits.test)
        (1294, 144, 359)
        >>> int(digits.train.flipped.sum())
        518
    """
    _check_names(name, options)
    _check_shares(name, label_noise, validation, subset)
    if name == "white-noise":
        return white_noise(validation=validation, seed=seed, **options).to(device)
    if name == "text":
        return text(
            path=data_dir, label_noise=label_noise, validation=validation, seed=seed, **options
        ).to(device)
    if name == "folder":
        source = read_folder(**_below(data_dir, options))
    else:
        place = find_place(data_dir, download=download, download_url=download_url)
        source = _read(name, place, options)
    return assemble(
        name, source, label_noise=label_noise, validation=validation, subset=subset, seed=seed
    ).to(device)


def _read(name: str, place: Place, options: dict[str, Any]) -> Source:
    match name:
        case "digits":
            return read_digits()
        case "cifar10":
            return read_cifar(place, CIFAR10)
        case "cifar100":
            return read_cifar(place, CIFAR100)
        case "cifar10n":
            return read_cifar_human(place, CIFAR10N, **options)
        case "cifar100n":
            return read_cifar_human(place, CIFAR100N)
    raise AssertionError(f"no reader for '{name}'")


def _below(data_dir: str | Path | None, options: dict[str, Any]) -> dict[str, Any]:
    if "path" not in options and data_dir is None:
        raise UserError(
            "Dataset 'folder' needs the folder of the images, found none: name it with the option "
            "'path' or with --data-dir (data_dir=...)."
        )
    return options | {"path": Path(data_dir or "") / options.get("path", "")}


def _check_names(name: str, options: dict[str, Any]) -> None:
    if name not in _OPTIONS:
        raise unknown_name("dataset", name, dataset_names())
    for option in options:
        if option in _OPTIONS[name]:
            continue
        if not _OPTIONS[name]:
            raise UserError(
                f"Unknown option of dataset '{name}' '{option}': it takes none, leave it out."
            )
        raise unknown_name(f"option of dataset '{name}'", option, _OPTIONS[name])


def _check_shares(name: str, label_noise: float, validation: float, subset: int | None) -> None:
    if not 0 <= label_noise < 1:
        raise UserError(
            f"label_noise is a share and must be at least 0 and below 1, found {label_noise}: "
            "write 40% as 0.4."
        )
    if not 0 < validation < 1:
        raise UserError(
            f"validation is a share and must be above 0 and below 1, found {validation}: "
            "write 10% as 0.1."
        )
    if label_noise and name in ("cifar10n", "cifar100n"):
        raise UserError(
            f"Dataset '{name}' has the noise of human labels, found label_noise={label_noise} on "
            f"top: leave it at 0, or use '{name.removesuffix('n')}' for symmetric noise."
        )
    if name == "text" and subset is not None:
        raise UserError(
            f"Dataset 'text' takes no subset, found subset={subset}: leave it out, and set the "
            "option 'size', in bytes of each text."
        )
    if name == "white-noise" and (label_noise or subset is not None):
        raise UserError(
            "Dataset 'white-noise' has random labels and any size, found "
            f"label_noise={label_noise} and subset={subset}: leave both out, and set the option "
            "'samples'."
        )
