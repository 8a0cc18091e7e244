import json
import sys

import pandas as pd
import pytest

from gafscope.cli import main

QUICK = ["--threads", "1", "--no-progress"]
OWN = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")

def build(late=False):
    torch.manual_seed(0)
    labels = torch.arange(120) % 3
    if late:
        labels[-1] = 7
    return nn.Linear(5, 3), loss, (torch.randn(120, 5), labels)

def broken():
    return build(late=True)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_command.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("own_command", None)


def test_a_page_of_answers_about_a_built_in_network(tmp_path, capsys):
    folder = tmp_path / "page"
    words = ["--label-noise", "0.4", "--steps", "40", "--model-options", "hidden", "8"]
    words += ["--samples", "200", "--top", "5", "--microbatch-size", "10", "--run-dir", str(folder)]
    assert main(["diagnose", *QUICK, *words]) == 0
    text = capsys.readouterr().out
    for word in ("DO THE GRADIENTS AGREE?", "WHICH THRESHOLD?", "AUROC", "Flipped samples"):
        assert word in text
    found = json.loads((folder / "diagnosis.json").read_text())
    assert found["samples"] == 1294
    assert found["microbatch_size"] == 10
    assert len(found["samples_that_disagree_most"]) == 5
    assert found["answers"]["Which threshold?"] in (folder / "answers.txt").read_text()
    samples = pd.read_csv(folder / "samples.csv")
    assert len(samples) == 200
    assert samples["rank"].tolist() == list(range(1, 201))
    summary = pd.read_csv(folder / "summary.csv")
    tau = summary[summary["quantity"] == "tau"].iloc[0]
    assert tau["value"] == pytest.approx(found["calibration"]["tau"])
    assert f"{tau['value']:.3f} [{tau['low']:.3f}" in text
    figures = sorted(path.name for path in (folder / "figures").iterdir())
    names = ("curve", "layers", "samples", "spectrum")
    assert figures == [f"{name}.{end}" for name in names for end in ("png", "svg")]


def test_a_page_about_a_model_of_ones_own(own, capsys):
    words = ["--problem", "own_command:build", "--microbatch-size", "5", "--seed", "3"]
    assert main(["diagnose", *QUICK, *words]) == 0
    folder = own / "runs" / "diagnose-build"
    assert json.loads((folder / "diagnosis.json").read_text())["microbatch_size"] == 5
    text = capsys.readouterr().out
    assert "120 samples, 24 microbatches of 5" in text
    assert "FLIPPED" not in text
    assert str(folder.relative_to(own) / "samples.csv") in text


MISTAKES = {
    "training settings": (["--steps", "5"], ["--steps", "own_command:build", "leave it out"]),
    "too little data": (["--microbatch-size", "50"], ["120 samples make 2"]),
    "rate": (["--false-accept", "0.9"], ["false_accept", "0.9"]),
    "too few ranked": (["--samples", "1"], ["at least 3"]),
    "nothing shown": (["--top", "0"], ["top", "0"]),
    "no memory": (["--memory", "-1"], ["memory", "-1"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_explained(case, own, capsys):
    words, expected = MISTAKES[case]
    assert main(["diagnose", *QUICK, "--problem", "own_command:build", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gafscope: ")
    assert captured.err.count("\n") == 1
    for word in expected:
        assert word in captured.err
    assert not (own / "runs").exists()


def test_an_exception_while_measuring_is_explained(own, capsys):
    words = ["--problem", "own_command:broken", "--microbatch-size", "5"]
    assert main(["diagnose", *QUICK, *words]) == 2
    message = capsys.readouterr().err
    assert "own_command.py, line 7, in loss" in message
    assert "Target 7 is out of bounds" in message
    assert "Traceback" not in message
