"""`calibrated-tau`, `metrics`, `rules` and `cost --what rules`, as a user types them."""

from __future__ import annotations

import pandas as pd
import pytest

from gafscope.cli import main

pytestmark = pytest.mark.timeout(300)


def test_metrics(tmp_path, capsys):
    words = ["--steps", "6", "--stages", "2", "--rows", "4", "--row-size", "5", "--samples", "40"]
    rest = ["--seeds", "1", "--rules", "mean", "--no-progress", "--run-dir", str(tmp_path)]
    assert main(["metrics", *words, *rest]) == 0
    text = capsys.readouterr().out
    assert "mean_distance" in text
    assert "class_distance" in text
    assert "step 6" in text
    for name in ("summary.csv", "stages.csv", "correlations.csv"):
        assert len(pd.read_csv(tmp_path / name))
    for name in ("metrics", "correlations", "flipped-labels"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 0


def test_rules(tmp_path, capsys):
    words = ["--steps", "10", "--seeds", "1", "--rules", "gaf:anchor=best", "--tau", "0.7"]
    words += ["--validate-every", "5", "--no-progress", "--run-dir", str(tmp_path)]
    assert main(["rules", *words]) == 0
    text = capsys.readouterr().out
    assert "gaf anchor=best" in text
    assert "equal samples (10 macrobatches)" in text
    assert "equal updates (5)" in text
    assert "One seed gives no interval" in " ".join(text.split())
    for name in ("rules", "rules-curves"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 0


def test_calibrated_tau(tmp_path, capsys):
    words = ["--steps", "10", "--seeds", "1", "--taus", "0.9", "--calibration-rows", "8"]
    rest = ["--model-options", "hidden", "8", "--no-progress", "--run-dir", str(tmp_path)]
    assert main(["calibrated-tau", *words, *rest]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "The best threshold set by hand, by validation accuracy, is GAF tau 0.9." in text
    rules = ["averaging", "GAF tau 0.9", "calibrated GAF", "adaptive GAF"]
    table = pd.read_csv(tmp_path / "summary.csv")
    assert table["rule"].tolist() == [*rules, *(f"yoked to {rule}" for rule in rules[1:])]
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures
    assert all((tmp_path / "figures" / name).stat().st_size > 0 for name in figures)


def test_cost_of_rules(tmp_path, capsys):
    words = ["--rules", "krum", "--microbatches", "2", "8", "--microbatch-size", "2"]
    rest = ["--model", "cnn", "--repeats", "1", "--output", str(tmp_path)]
    assert main(["cost", "--what", "rules", *words, *rest]) == 0
    assert pd.read_csv(tmp_path / "rules.csv")["rule"].tolist() == ["mean", "gaf", "krum"] * 2
    text = capsys.readouterr().out
    assert "cnn, k = 8 microbatches of 2" in text
    assert "krum: Krum(byzantine=1) needs at least 5" in text
    assert "Target for weightings at k = 8" in " ".join(text.split())


@pytest.mark.parametrize("command", [["metrics"], ["rules"], ["cost", "--what", "rules"]])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--rules" in text
    assert "NAME:OPTION=VALUE" in text
