"""`train` and `diagnose` on text."""

from __future__ import annotations

import json

import pytest

from gafscope.cli import main
from gafscope.records import load_run

SMALL = ["--data", "text", "--data-options", "context", "8", "size", "6000", "--model", "gpt"]
SMALL += ["--model-options", "dim", "8", "depth", "1", "heads", "2"]
SMALL += ["--optimizer", "adamw", "--lr", "0.01", "--threads", "1", "--no-progress"]


@pytest.mark.parametrize("microbatches", ["2", "samples"])
def test_training_lowers_the_validation_loss(tmp_path, capsys, microbatches):
    words = ["--steps", "20", "--validate-every", "10", "--microbatches", microbatches]
    assert main(["train", *SMALL, *words, "--run-dir", str(tmp_path)]) == 0
    assert "validation accuracy" in capsys.readouterr().out
    first, last = load_run(tmp_path).scalars["validation_loss"].dropna()
    assert last < first < 5.55  # nats of a byte at random


def test_a_page_about_a_language_model(tmp_path, capsys):
    words = ["--steps", "10", "--samples", "40", "--top", "3", "--microbatch-size", "4"]
    words += ["--label-noise", "0.2", "--run-dir", str(tmp_path)]
    assert main(["diagnose", *SMALL, *words]) == 0
    text = capsys.readouterr().out
    assert "positions.weight" in text
    # Single bytes are wrong, not samples.
    assert "AUROC" not in text
    assert len(json.loads((tmp_path / "diagnosis.json").read_text())["layers"]) > 10


def test_text_needs_a_model_that_reads_it(tmp_path, capsys):
    assert main(["train", "--data", "text", "--run-dir", str(tmp_path)]) == 2
    assert "--data text --model gpt" in capsys.readouterr().err
