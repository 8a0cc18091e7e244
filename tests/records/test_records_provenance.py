from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch

from gafscope.records.provenance import provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(*arguments: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b")
    answer = subprocess.run(["git", *settings, *arguments], check=True, capture_output=True)
    return answer.stdout.decode().strip()


def test_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "gafscope", "train", "--run-dir", "a b"])
    origin = provenance(seed=7, device="cpu")
    assert json.loads(json.dumps(origin)) == origin
    assert origin["versions"]["python"] == platform.python_version()
    assert origin["versions"]["torch"] == torch.__version__
    assert origin["versions"].keys() == {"python", "torch", "numpy", "gafscope"}
    assert (origin["seed"], origin["device"]) == (7, "cpu")
    assert origin["device_name"]
    assert origin["command"] == "python -m gafscope train --run-dir 'a b'"
    assert datetime.fromisoformat(origin["started"]).utcoffset() == timedelta(0)


def test_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert provenance(seed=0, device="cpu")["git"] is None


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance(seed=0, device="cpu")["git"] is None


@needs_git
def test_commit_and_dirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init")
    (tmp_path / "code").write_text("1")
    git("add", "code")
    git("commit", "-m", "first")
    (tmp_path / "untracked").touch()
    clean = provenance(seed=0, device="cpu")["git"]
    assert clean == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "code").write_text("2")
    assert provenance(seed=0, device="cpu")["git"] == {**clean, "dirty": True}
