from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cifar_stand_ins import FakeCifar

from gafscope.data.cifar_human import CIFAR10N, HumanLayout, read_cifar_human
from gafscope.data.files import find_place
from gafscope.errors import UserError

CLEAN = np.arange(40) % 4
WORSE = (np.arange(40) + 1) % 4
AGGREGATE = np.where(np.arange(40) < 10, 0, CLEAN)


def write(root: Path, **content: Any) -> None:
    values = {"clean_label": CLEAN, "worse_label": WORSE, "aggre_label": AGGREGATE} | content
    (root / "cifar-n").mkdir()
    torch.save(values, root / CIFAR10N.file)


@pytest.fixture
def layout(tmp_path: Path, fake_cifar: FakeCifar) -> HumanLayout:
    fake_cifar.write(tmp_path)
    return replace(CIFAR10N, images=fake_cifar.layout)


def test_the_chosen_labels_are_read(tmp_path: Path, layout: HumanLayout):
    write(tmp_path)
    for choice, expected in ((None, WORSE), ("worse_label", WORSE), ("aggre_label", AGGREGATE)):
        source = read_cifar_human(find_place(tmp_path), layout, choice)
        assert source.human_labels is not None
        assert source.human_labels.tolist() == expected.tolist()
        assert source.labels.tolist() == CLEAN.tolist()


def test_reading_leaves_no_global_behind_and_removes_none(tmp_path: Path, layout: HumanLayout):
    write(tmp_path)
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([np.ndarray]):
        read_cifar_human(find_place(tmp_path), layout)
        assert set(torch.serialization.get_safe_globals()) == {*before, np.ndarray}
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_labels_of_other_images_are_refused(tmp_path: Path, layout: HumanLayout):
    write(tmp_path, clean_label=WORSE)
    with pytest.raises(UserError, match=r"clean_label .* must equal the training labels"):
        read_cifar_human(find_place(tmp_path), layout)


@pytest.mark.parametrize(
    ("worse", "match"),
    [
        (WORSE[:-1], "one worse_label for each of the 40"),
        (WORSE.astype(np.float32), "is not a PyTorch file of NumPy arrays|no int64 array"),
        (WORSE.tolist(), "no int64 array 'worse_label'"),
    ],
)
def test_unfit_labels_are_refused(tmp_path: Path, layout: HumanLayout, worse: Any, match: str):
    write(tmp_path, worse_label=worse)
    with pytest.raises(UserError, match=match):
        read_cifar_human(find_place(tmp_path), layout)


def test_unknown_sets_and_missing_or_altered_files_are_named(tmp_path: Path, layout: HumanLayout):
    with pytest.raises(UserError, match="Did you mean 'worse_label'"):
        read_cifar_human(find_place(tmp_path), layout, "worst_label")
    with pytest.raises(UserError, match=r"CIFAR-10_human.pt.*cifar-10-100n"):
        read_cifar_human(find_place(tmp_path), layout)
    write(tmp_path)
    with pytest.raises(UserError, match="expected md5 000"):
        read_cifar_human(find_place(tmp_path), replace(layout, md5="0" * 32))


class Command:
    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.text,)


def test_code_in_the_file_is_refused_and_does_not_run(tmp_path: Path, layout: HumanLayout):
    write(tmp_path, evil=Command(f"touch {tmp_path / 'ran'}"))
    with pytest.raises(UserError, match="is not a PyTorch file of NumPy arrays"):
        read_cifar_human(find_place(tmp_path), layout)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04 cut"])
def test_damage_is_a_clear_error(tmp_path: Path, layout: HumanLayout, data: bytes):
    write(tmp_path)
    (tmp_path / CIFAR10N.file).write_bytes(data)
    with pytest.raises(UserError, match="is not a PyTorch file"):
        read_cifar_human(find_place(tmp_path), layout)
