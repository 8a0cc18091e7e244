from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_stand_ins import FakeCifar, Server, md5

from gafscope.data.cifar import CIFAR10, CIFAR100, CifarLayout, read_cifar
from gafscope.data.files import Place, find_place
from gafscope.errors import UserError


def test_rows_become_images_channel_by_channel(tmp_path: Path, fake_cifar: FakeCifar):
    fake_cifar.write(tmp_path)
    source = read_cifar(find_place(tmp_path), fake_cifar.layout)
    rows = pickle.loads(fake_cifar.files["train"])["data"]
    assert source.inputs.shape == (40, 3, 32, 32)
    assert source.inputs.dtype == torch.uint8
    assert source.test_inputs.shape == (8, 3, 32, 32)
    assert int(source.inputs[5, 2, 3, 4]) == rows[5, 2 * 1024 + 3 * 32 + 4]
    assert source.labels.tolist() == [index % 4 for index in range(40)]
    assert source.human_labels is None


def test_several_training_files_are_read_in_order(tmp_path: Path, fake_cifar: FakeCifar):
    fake_cifar.write(tmp_path)
    both = replace(fake_cifar.layout, train=("train", "test"))
    source = read_cifar(find_place(tmp_path), both)
    assert len(source.labels) == 48
    assert torch.equal(source.inputs[40:], source.test_inputs)


def test_a_missing_file_says_which_where_and_how_to_get_it(tmp_path: Path, fake_cifar: FakeCifar):
    folder = fake_cifar.write(tmp_path)
    (folder / "test").unlink()
    with pytest.raises(UserError) as error:
        read_cifar(find_place(tmp_path), fake_cifar.layout)
    for part in (str(folder / "test"), "cifar-100-python.tar.gz", "--download", "GAFSCOPE_DATA"):
        assert part in str(error.value)


def test_an_explicit_folder_never_falls_back(
    tmp_path: Path, fake_cifar: FakeCifar, monkeypatch: pytest.MonkeyPatch
):
    fake_cifar.write(tmp_path / "full")
    monkeypatch.setenv("GAFSCOPE_DATA", str(tmp_path / "full"))
    assert len(read_cifar(find_place(None), fake_cifar.layout).labels) == 40
    with pytest.raises(UserError, match="given as data_dir"):
        read_cifar(find_place(tmp_path / "empty"), fake_cifar.layout)


def test_truncated_and_altered_files_are_refused(tmp_path: Path, fake_cifar: FakeCifar):
    train = fake_cifar.write(tmp_path) / "train"
    data = fake_cifar.files["train"]
    for damaged in (data[:-1], data[:-1] + b"x"):
        train.write_bytes(damaged)
        with pytest.raises(UserError, match=r"truncated or altered: expected md5 .*--download"):
            read_cifar(find_place(tmp_path), fake_cifar.layout)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"fine_labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]},
        {"data": np.zeros((1, 3072), np.float32), "fine_labels": [0]},
        {"data": np.zeros((1, 3071), np.uint8), "fine_labels": [0]},
    ],
)
def test_other_content_is_refused(tmp_path: Path, fake_cifar: FakeCifar, content: object):
    folder = fake_cifar.write(tmp_path)
    data = pickle.dumps(content, protocol=4)
    (folder / "train").write_bytes(data)
    layout = replace(fake_cifar.layout, md5={"train": md5(data)})
    with pytest.raises(UserError, match=r"must hold a uint8 array 'data' of 3,072 columns"):
        read_cifar(find_place(tmp_path), layout)


def test_missing_files_are_fetched_once(tmp_path: Path, fake_cifar: FakeCifar, server: Server):
    server.files[CIFAR100.archive] = fake_cifar.archive
    place = Place(tmp_path, "here", download=True, download_url=server.url)
    for _ in range(2):
        assert len(read_cifar(place, fake_cifar.layout).labels) == 40
    assert len(server.asked) == 1


@pytest.mark.parametrize("layout", [CIFAR10, CIFAR100])
def test_every_file_of_a_layout_has_a_checksum(layout: CifarLayout):
    assert {*layout.train, *layout.test} < set(layout.md5)
    assert all(len(value) == 32 for value in (*layout.md5.values(), layout.archive_md5))
