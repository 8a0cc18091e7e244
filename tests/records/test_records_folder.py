from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import yaml

from gafscope.errors import UserError
from gafscope.records.files import atomic_write
from gafscope.records.folder import is_run, open_folder, read_mapping

CONFIG = {"rule": "GAF", "tau": 0.97, "lr": 1e-5, "steps": 100, "layers": [64, 10], "x": None}


def opened(folder: Path, seed: int = 0, **changes: object) -> bool:
    return open_folder(folder, {**CONFIG, **changes}, seed=seed, device="cpu")


def test_a_new_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "demo"
    assert not opened(folder)
    assert is_run(folder)
    assert sorted(os.listdir(folder)) == ["config.yaml", "matrices", "provenance.json"]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG
    assert (folder / "config.yaml").read_text().startswith("rule: GAF\ntau: 0.97\n")
    assert json.loads((folder / "provenance.json").read_text())["seed"] == 0


def test_the_same_settings_open_it_again_untouched(tmp_path: Path) -> None:
    opened(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert opened(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_nan_and_tuples_compare_by_what_is_written(tmp_path: Path) -> None:
    opened(tmp_path, tau=float("nan"), layers=(1, 2))
    assert opened(tmp_path, tau=float("nan"), layers=[1, 2])


@pytest.mark.parametrize(
    ("changes", "key", "before", "now"),
    [
        ({"tau": 0.95}, "tau", "0.97", "0.95"),
        ({"rule": "Mean", "tau": 0.95}, "rule", "'GAF'", "'Mean'"),
        ({"steps": 200, "tau": 0.95}, "tau", "0.97", "0.95"),
        ({"steps": 99}, "steps", "100", "99"),
        ({"extra": 1}, "extra", "'not set'", "1"),
        ({"layers": [64, 11]}, "layers", "[64, 10]", "[64, 11]"),
        ({"seed": 5}, "seed of the run", "0", "5"),
    ],
)
def test_other_settings_are_named(tmp_path: Path, changes, key, before, now) -> None:
    opened(tmp_path)
    content = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError) as caught:
        opened(tmp_path, **changes)
    message = str(caught.value)
    assert f"'{key}' is {before} there and {now} now" in message
    assert "another --run-dir, or remove the folder" in message
    assert (tmp_path / "config.yaml").read_bytes() == content


def test_a_setting_that_is_gone_is_named(tmp_path: Path) -> None:
    opened(tmp_path)
    rest = {key: value for key, value in CONFIG.items() if key != "tau"}
    with pytest.raises(UserError, match=r"'tau' is 0\.97 there and 'not set' now"):
        open_folder(tmp_path, rest, seed=0, device="cpu")


def test_steps_may_grow(tmp_path: Path) -> None:
    opened(tmp_path)
    assert opened(tmp_path, steps=200)
    assert read_mapping(tmp_path / "config.yaml") == {**CONFIG, "steps": 200}
    with pytest.raises(UserError, match=r"'steps' is 200 there and 100 now \(it may grow"):
        opened(tmp_path)


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"not empty and not a run: it holds 'thesis\.tex'"):
        opened(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "demo").touch()
    with pytest.raises(UserError, match=r"Cannot write .*demo"):
        opened(tmp_path / "demo")


def test_a_start_that_was_cut_short_is_taken_up(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "config.yaml").unlink()
    atomic_write(tmp_path / "config.yaml").__enter__()
    assert not opened(tmp_path)
    assert is_run(tmp_path)


def test_settings_must_be_plain(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another object among them"):
        opened(tmp_path / "demo", model=object())
    assert not (tmp_path / "demo").exists()


def test_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"demo: Read-only file system\. Nothing was written"):
        opened(tmp_path / "demo")


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json"])
def test_damaged_settings(tmp_path: Path, name: str) -> None:
    opened(tmp_path)
    (tmp_path / name).write_text("[1")
    with pytest.raises(UserError, match=f"{name} does not hold a mapping"):
        opened(tmp_path)
