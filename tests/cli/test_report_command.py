"""`python -m gafscope report`, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gafscope.cli import main
from gafscope.records import RunWriter


def record(folder: Path, steps: int = 5) -> Path:
    writer = RunWriter(folder, {"rule": "gaf", "microbatches": 2}, seed=0, device="cpu")
    for step in range(steps):
        row = {"loss": 1 / (step + 1), "accepted": 2, "stepped": True, "distance_mean": 0.5}
        writer.scalars({"step": step, **row})
        writer.gramians(step, [[1.0, 0.5], [0.5, 1.0]], {"fc": [[1.0, 0.5], [0.5, 1.0]]})
    writer.close()
    return folder


def test_one_run_is_reported_in_its_folder(tmp_path, capsys):
    run = record(tmp_path / "demo")
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capsys.readouterr().out == f"Report: {run / 'report.html'}\n"


def test_several_runs_are_reported_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(record(Path(name))) for name in ("a", "b")]
    assert main(["report", *names]) == 0
    assert "Comparison of 2 runs" in Path("runs/report.html").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("[ab]/*.html"))


def test_output_is_where_it_was_asked_for(tmp_path):
    run = record(tmp_path / "demo")
    target = tmp_path / "new" / "page.html"
    assert main(["report", str(run), "--output", str(target)]) == 0
    assert target.is_file()
    assert not (run / "report.html").exists()


def test_a_report_does_not_hinder_the_run(tmp_path):
    run = record(tmp_path / "demo")
    assert main(["report", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    writer = RunWriter(run, {"rule": "gaf", "microbatches": 2}, seed=0, device="cpu")
    writer.rewind(None)
    writer.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "'report' needs the folder of at least one run"),
        (["nowhere"], "nowhere does not exist"),
        (["plain"], "plain is not a run"),
        (["empty"], "empty has no steps yet"),
        (["cut"], "cut has no steps yet"),
        (["good", "good"], "good is given twice"),
        (["good", "--output", "plain"], "Cannot write plain"),
        (["good", "--output", "file/page.html"], "Cannot create the folder file"),
    ],
)
def test_mistakes_are_explained(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    record(Path("good"))
    record(Path("empty"), steps=0)
    record(Path("cut"))
    Path("cut/scalars.jsonl").unlink()
    Path("plain").mkdir()
    Path("file").write_text("")
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gafscope: ")
    assert message in error
    assert not list(tmp_path.rglob("*.html"))


def test_the_help_names_it(capsys):
    assert main(["--help"]) == 0
    assert "report " in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["report", "--help"])
    assert stop.value.code == 0
    assert "--output" in capsys.readouterr().out
