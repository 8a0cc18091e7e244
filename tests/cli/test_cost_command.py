"""`python -m gafscope cost`, as a user types it."""

from __future__ import annotations

import pandas as pd
import pytest

from gafscope.cli import main

# A busy machine may make a pass of microseconds look fast beside anything.
PATIENT = ["--limit", "1e6"]
TINY = ["--samples", "4", "--engines", "loop", "--peers", "opacus", "--repeats", "1", *PATIENT]


@pytest.mark.parametrize("what", [[], ["--what", "engines"]])
def test_engines_are_the_default(what, tmp_path, capsys):
    words = ["--models", "mlp", *TINY, "--microbatches", "2x2", "--output", str(tmp_path)]
    assert main(["cost", *what, *words]) == 0
    table = pd.read_csv(tmp_path / "engines.csv")
    shapes = set(zip(table["k"], table["u"], strict=True))
    assert shapes == {(4, 1), (2, 2)}
    assert {"plain", "loop", "averaging step", "GAF step"} <= set(table["method"])
    for name in ("engines.png", "engines.svg", "microbatches.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 0
    text = capsys.readouterr().out
    assert "mlp, 411,146 parameters" in text
    assert str(tmp_path / "engines.csv") in text
    assert "memory ratio" in text


def test_peers_that_are_missing_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gafscope.analyses.cost_peers.importlib.util.find_spec", lambda name: None)
    words = ["--models", "mlp", *TINY, "--microbatches", "--output", str(tmp_path)]
    assert main(["cost", *words]) == 0
    assert "Not installed, so not measured: opacus" in capsys.readouterr().out


def test_a_note_is_printed_once_with_its_sizes(tmp_path, capsys):
    words = ["--models", "mlp", "--samples", "16", "32", "--engines", "loop", "--limit", "1.01"]
    rest = ["--peers", "--microbatches", "--repeats", "1", "--output", str(tmp_path)]
    assert main(["cost", *words, *rest]) == 0
    text = capsys.readouterr().out
    assert "loop (n=16 k=16): not timed:" in text
    assert "more than the limit of 1.01" in text


def test_growth(tmp_path, capsys):
    words = [
        "--model",
        "mlp",
        "--samples",
        "2",
        "4",
        "8",
        "--fixed-samples",
        "4",
        "--widths",
        "0.5",
    ]
    rest = ["--microbatches", "2", "--engines", "loop", "--repeats", "1", "--output", str(tmp_path)]
    rest += PATIENT
    assert main(["cost", "--what", "growth", *words, *rest]) == 0
    assert len(pd.read_csv(tmp_path / "growth.csv")) == 2 * (3 + 1 + 1)
    slopes = pd.read_csv(tmp_path / "growth-slopes.csv")
    assert slopes["growth"].tolist() == ["n", "n"]
    assert (tmp_path / "figures" / "growth.png").stat().st_size > 0
    assert "slope" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["engines", "growth", "step", "watch"])
def test_help_teaches(what, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["cost", "--what", what, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"cost --what {what}" in text
    assert "--repeats" in text


def test_watch(tmp_path, capsys):
    words = ["--models", "mlp", "--microbatches", "3", "--microbatch-size", "2", "--every", "2"]
    rest = ["--repeats", "1", "--threads", "1", "--output", str(tmp_path)]
    assert main(["cost", "--what", "watch", *words, *rest]) == 0
    table = pd.read_csv(tmp_path / "watch.csv").set_index("loop")
    assert table.loc["bare loop", "ratio"] == 1
    assert len(table) == 8
    # The bare loop has one row beside `.grad` as well; in bf16 three rows are half as large.
    row = 4 * table["parameters"].iloc[0] / 1e6
    assert table.loc["watched, every step", "extra_MB"] == pytest.approx(2 * row, rel=0.05)
    assert table.loc["watched, every step, rows in bf16", "extra_MB"] < 1.6 * row
    # Two samples a microbatch have far fewer numbers than a row; what is left is workspace.
    assert table.loc["watched, every step, ghost", "extra_MB"] < row
    share = table.loc["watched, every step, with a live panel", "view_share"]
    assert 0 < share < 1
    assert table["view_share"].count() == 1
    text = capsys.readouterr().out
    assert "beyond the bare loop's" in text
    assert f"The live panel took {share:.2%} of the " in text


def test_trials_together_are_timed_against_one_by_one(tmp_path, capsys):
    out = tmp_path / "cost"
    arguments = ["--trials", "3", "--steps", "4", "--repeats", "2", "--output", str(out)]
    assert main(["cost", "--what", "sweep", *arguments]) == 0
    table = pd.read_csv(out / "sweep.csv")
    row = table.iloc[0]
    assert (row["trials"], row["steps"]) == (3, 4)
    # The time of every turn lies between the extremes, so the ratio's quartiles frame its median.
    assert 0 < row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    assert min(row["alone_seconds"], row["together_seconds"]) > 0
    assert "one by one over the time together" in " ".join(capsys.readouterr().out.split())


def test_help_names_the_other_tables(capsys):
    with pytest.raises(SystemExit):
        main(["cost", "--help"])
    text = capsys.readouterr().out
    assert "--what growth" in text
    assert "--what step" in text
    assert "--what watch" in text
    assert "--what sweep" in text
    assert "[peers]" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--what", "engine"], ["engine", "'engines'"]),
        (["--models", "rennet18"], ["rennet18", "'resnet18'"]),
        (["--microbatches", "8*2"], ["8x2", "8*2"]),
        (["--device", "tpu"], ["tpu", "cuda"]),
        (["--what", "growth", "--fixed-samples", "10"], ["does not divide 10"]),
        (["--what", "watch", "--microbatches", "1"], ["microbatches >= 2", "found 1"]),
        (["--what", "sweep", "--trials", "1"], ["at least 2", "(1,)"]),
    ],
)
def test_mistakes_are_explained(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["cost", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("gafscope: ")
    assert message.count("\n") == 1
    for word in words:
        assert word in message
    assert list(tmp_path.iterdir()) == []


def test_a_yaml_file_gives_lists(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "models: [mlp]\nsamples: [2, 4]\nengines: [loop]\npeers: []\nmicrobatches: []\n"
        f"repeats: 1\noutput: {tmp_path}\n"
    )
    assert main(["cost", "--config", str(recipe)]) == 0
    assert set(pd.read_csv(tmp_path / "engines.csv")["k"]) == {2, 4}
