"""What an analysis leaves behind, drawn again and checked; and its plan before it starts."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from gafscope.cli import main

WORDS = ["--steps", "12", "--seeds", "2", "--model-options", "hidden", "8", "--noise-samples", "60"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    assert main(["white-noise", *WORDS, "--no-progress", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def copied(study, tmp_path):
    names = ("runs.csv", "curves.csv", "recipe.yaml", "measured.json")
    for name in names:
        shutil.copy(study / name, tmp_path / name)
    return tmp_path


def test_everything_shown_comes_from_what_was_kept(study, copied, capsys):
    assert main(["white-noise", "--redraw", str(copied)]) == 0
    again = capsys.readouterr().out
    for name in ("summary.csv", "verdict.txt", "figures/white-noise.png"):
        assert (copied / name).read_bytes() == (study / name).read_bytes(), name
    assert (study / "verdict.txt").read_text().split()[0] in again


def test_the_recipe_runs_the_same_again(study, tmp_path):
    recipe = study / "recipe.yaml"
    rest = ["--no-progress", "--run-dir", str(tmp_path)]
    assert main(["white-noise", "--config", str(recipe), *rest]) == 0
    assert (tmp_path / "recipe.yaml").read_text() == recipe.read_text()
    assert (tmp_path / "runs.csv").read_bytes() == (study / "runs.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("recipe.yaml", "lr: 0.05", "lr: 0.06", ["recipe.yaml", "not the one"]),
        ("runs.csv", "digits", "other", ["runs.csv", "not the one"]),
        ("measured.json", "white-noise", "demo", ["'demo'", "not 'white-noise'"]),
        ("measured.json", "{", "", ["damaged"]),
    ],
)
def test_files_that_do_not_belong_together(copied, capsys, name, old, new, words):
    path = copied / name
    path.write_text(path.read_text().replace(old, new, 1))
    assert main(["white-noise", "--redraw", str(copied)]) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not (copied / "summary.csv").exists()


def test_a_file_that_is_missing(copied, capsys):
    (copied / "curves.csv").unlink()
    assert main(["white-noise", "--redraw", str(copied)]) == 2
    assert "curves.csv is missing" in capsys.readouterr().err


def test_an_empty_table_has_no_figure(copied, capsys):
    path = copied / "runs.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    from gafscope.cli.study import _digest

    marks = json.loads((copied / "measured.json").read_text())
    (copied / "measured.json").write_text(json.dumps(marks | {"runs.csv": _digest(path)}))
    assert main(["white-noise", "--redraw", str(copied)]) == 2
    assert "has no rows" in capsys.readouterr().err


def test_redraw_takes_no_settings(copied, capsys):
    assert main(["white-noise", "--redraw", str(copied), "--steps", "3"]) == 2
    assert "'--steps'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("analysis", "runs"),
    [
        (["demo", "--seeds", "2"], 2 * 3 + 4),
        (["white-noise"], 12),
        (["calibrated-tau", "--seeds", "2"], 2 * 7 + 2 * 3),
        (["rules", "--seeds", "1", "--rules", "gaf"], 2 * 2 * 2),
        (["metrics"], 6),
    ],
)
def test_a_dry_run_tells_and_leaves_nothing(analysis, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*analysis, "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"{runs} trainings of" in text
    assert "hours one after the other" in text
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_what_is_trained(study):
    trained = len([path for path in study.iterdir() if (path / "config.yaml").exists()])
    assert trained == 8
    assert len(pd.read_csv(study / "runs.csv")) == 8


def test_the_page_of_an_analysis_is_one_file(study):
    page = (study / "report.html").read_text()
    assert "What was found" in page
    assert "data:image/png;base64," in page
    assert "memorises" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "noise_samples: 60" in page


def test_one_page_links_all(tmp_path, capsys, monkeypatch):
    from gafscope.analyses import ANALYSES
    from gafscope.cli import analyses

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(analyses, "ANALYSES", {"white-noise": ANALYSES["white-noise"]})
    assert main(["analyses", "--all", *WORDS, "--no-progress"]) == 0
    assert "All of them on one page: runs/analyses.html" in capsys.readouterr().out
    index = (tmp_path / "runs" / "analyses.html").read_text()
    assert 'href="white-noise/report.html"' in index
    assert (tmp_path / "runs" / "white-noise" / "report.html").exists()


def test_all_dry_runs_without_a_page(tmp_path, capsys, monkeypatch):
    from gafscope.analyses import ANALYSES
    from gafscope.cli import analyses

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(analyses, "ANALYSES", {"white-noise": ANALYSES["white-noise"]})
    assert main(["analyses", "--all", "--dry-run"]) == 0
    assert "12 trainings" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
