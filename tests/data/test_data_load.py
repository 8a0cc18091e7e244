from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cifar_stand_ins import FakeCifar, Server

from gafscope.data import dataset_names, load, load_data
from gafscope.data.cifar_human import CIFAR100N
from gafscope.errors import UserError


def test_the_names():
    assert dataset_names() == (
        "digits",
        "cifar10",
        "cifar100",
        "cifar10n",
        "cifar100n",
        "white-noise",
        "folder",
        "text",
    )


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("cifar1000", {}, "Unknown dataset 'cifar1000'. Did you mean 'cifar100'"),
        ("digits", {"shape": 3}, "Unknown option of dataset 'digits' 'shape'.* takes none"),
        ("white-noise", {"sample": 3}, "option of dataset 'white-noise' 'sample'.*'samples'"),
        ("cifar100n", {"human": "x"}, "Unknown option of dataset 'cifar100n'"),
        ("digits", {"label_noise": 1.0}, r"label_noise .* below 1, found 1\.0"),
        ("digits", {"label_noise": -0.1}, r"found -0\.1"),
        ("digits", {"label_noise": float("nan")}, "found nan"),
        ("digits", {"validation": 0.0}, r"validation .* above 0 .* found 0\.0"),
        ("digits", {"validation": 1}, "found 1: write 10% as 0.1"),
        ("digits", {"subset": 105}, "subset .* classes, 10, found 105"),
        ("digits", {"subset": 50_000}, "use at most"),
        ("cifar10n", {"label_noise": 0.2}, "use 'cifar10' for symmetric noise"),
        ("cifar100n", {"label_noise": 0.2}, "use 'cifar100' for symmetric noise"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, object], match: str):
    with pytest.raises(UserError, match=match):
        load_data(name, **options)


def test_digits_with_everything():
    data = load_data("digits", subset=500, validation=0.2, label_noise=0.3, seed=4)
    assert (data.name, len(data.train), len(data.validation)) == ("digits", 400, 100)
    assert int(data.train.flipped.sum()) == 120
    inputs, targets = data.train.batch(torch.arange(5))
    assert inputs.shape == (5, 1, 8, 8)
    assert targets.shape == (5,)


def test_two_calls_with_one_seed_agree():
    first, again = (load_data("digits", label_noise=0.3, seed=3) for _ in range(2))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.train.targets, again.train.targets)


def test_cifar_is_loaded_and_fetched(
    tmp_path: Path, fake_cifar: FakeCifar, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(load, "CIFAR100", fake_cifar.layout)
    server.files[fake_cifar.layout.archive] = fake_cifar.archive
    with pytest.raises(UserError, match="--download"):
        load_data("cifar100", data_dir=tmp_path)
    data = load_data(
        "cifar100",
        data_dir=tmp_path,
        download=True,
        download_url=server.url + "/",
        label_noise=0.25,
        device="cpu",
    )
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 8)
    assert int(data.train.flipped.sum()) == 9
    assert data.train.mean is not None
    assert data.train.batch()[0].dtype == torch.float32


def test_human_labels_are_loaded(
    tmp_path: Path, fake_cifar: FakeCifar, monkeypatch: pytest.MonkeyPatch
):
    layout = replace(CIFAR100N, md5=None, images=fake_cifar.layout)
    monkeypatch.setattr(load, "CIFAR100N", layout)
    fake_cifar.write(tmp_path)
    (tmp_path / "cifar-n").mkdir()
    clean = torch.arange(40).numpy() % 4
    torch.save(
        {"clean_label": clean, "noisy_label": (clean + 1) % 4},
        tmp_path / "cifar-n/CIFAR-100_human.pt",
    )
    data = load_data("cifar100n", data_dir=tmp_path)
    assert bool(data.train.flipped.all())
    assert torch.equal((data.train.true_targets + 1) % 4, data.train.targets)
    assert not data.validation.flipped.any()
