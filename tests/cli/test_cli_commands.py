"""The commands as a user types them."""

import json
import re
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import yaml

from gafscope.analyses import ANALYSES, Conclusion, Measured
from gafscope.cli import main
from gafscope.plots.studies import FIGURES
from gafscope.records import load_run

QUICK = ["--steps", "30", "--threads", "1", "--no-progress", "--model-options", "hidden", "16"]


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("demo", "train", "analyses", "cost", "white-noise"):
        assert word in text


@pytest.mark.parametrize("command", ["train", "demo", "white-noise", "cost"])
def test_help_of_a_command_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--preset" in text
    assert "--microbatch-size" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gafscope ")


def test_train_prints_a_table_and_leaves_a_run(tmp_path, capsys):
    assert main(["train", *QUICK, "--tau", "0.9", "--run-dir", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "test accuracy" in text
    assert "updates" in text
    run = load_run(tmp_path / "run")
    assert len(run.scalars) == 30
    assert run.config["tau"] == 0.9
    assert (tmp_path / "run" / "run.png").exists()


def test_train_decides_on_single_samples(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["--microbatches", "samples", "--microbatch-size", "16", "--run-dir", str(folder)]
    assert main(["train", *QUICK, *words]) == 0
    accepted = load_run(folder).scalars["accepted"]
    assert 2 < accepted.max() <= 16
    share = accepted.mean() / 16
    assert f"{share:.1%}" in re.search("samples accepted.*", capsys.readouterr().out)[0]
    with pytest.raises(SystemExit) as stop:
        main(["train", "--microbatches", "sample"])
    assert stop.value.code == 2
    assert "INT|{samples}" in capsys.readouterr().err


def test_the_same_command_trains_once(tmp_path, capsys):
    command = ["train", *QUICK, "--run-dir", str(tmp_path / "run")]
    main(command)
    before = (tmp_path / "run" / "scalars.jsonl").read_bytes()
    assert main(command) == 0
    assert (tmp_path / "run" / "scalars.jsonl").read_bytes() == before


def test_another_setting_does_not_overwrite_a_run(tmp_path, capsys):
    command = ["train", *QUICK, "--run-dir", str(tmp_path / "run")]
    main(command)
    assert main([*command, "--tau", "0.5"]) == 2
    message = capsys.readouterr().err
    assert "tau" in message
    assert "0.5" in message


def test_command_line_wins_over_file_and_file_over_preset(tmp_path):
    file = tmp_path / "my.yaml"
    settings = {
        "tau": 0.8,
        "lr": 0.02,
        "steps": 20,
        "augment": False,
        "model-options": {"hidden": [8, 8]},
        "progress": False,
        "threads": 1,
    }
    file.write_text(yaml.safe_dump(settings))
    folder = tmp_path / "run"
    words = ["train", "--config", str(file), "--lr", "0.03", "--run-dir", str(folder)]
    assert main(words) == 0
    config = load_run(folder).config
    assert (config["tau"], config["lr"], config["steps"]) == (0.8, 0.03, 20)
    assert config["microbatch_size"] == 20


def test_default_folder_is_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *QUICK]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-mlp-gaf-tau0.97-seed0-")


def test_yoked_control_from_the_command_line(tmp_path):
    main(["train", *QUICK, "--tau", "0.7", "--run-dir", str(tmp_path / "gaf")])
    words = ["--rule", "mean", "--sampling-seed", "9", "--yoked-to", str(tmp_path / "gaf")]
    assert main(["train", *QUICK, *words, "--run-dir", str(tmp_path / "yoked")]) == 0
    gaf, yoked = load_run(tmp_path / "gaf"), load_run(tmp_path / "yoked")
    assert yoked.scalars["stepped"].tolist() == gaf.scalars["stepped"].tolist()
    assert 0 < gaf.scalars["stepped"].sum() < 30
    assert yoked.scalars["loss"].tolist() != gaf.scalars["loss"].tolist()


def test_analyses_lists_them_with_their_times(capsys):
    assert main(["analyses"]) == 0
    text = capsys.readouterr().out
    assert "white-noise" in text
    assert "paper:" in text


def test_analyses_runs_one_by_name(tmp_path, capsys):
    words = ["--steps", "20", "--seeds", "1", "--no-progress", "--run-dir", str(tmp_path)]
    assert main(["analyses", "white-noise", *words]) == 0
    assert (tmp_path / "summary.csv").exists()
    assert (tmp_path / "figures" / "white-noise.svg").exists()


def test_analyses_all_runs_every_one_in_turn(tmp_path, capsys, monkeypatch):
    """Each real study has a test of its command; here each only says what it was given."""

    def measure(name, settings):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        table = pd.DataFrame({"data": ["digits"], "steps": [settings.train.steps]})
        return Measured(table, table, folder)

    def conclude(name, settings, runs, curves):
        return Conclusion(runs, f"verdict of {name}")

    monkeypatch.chdir(tmp_path)
    for name, analysis in ANALYSES.items():
        parts = {"measure": partial(measure, name), "conclude": partial(conclude, name)}
        monkeypatch.setitem(ANALYSES, name, replace(analysis, **parts))
        monkeypatch.setitem(FIGURES, name, lambda table, curves: {})
    assert main(["analyses", "--all", "--steps", "20", "--seeds", "1", "--no-progress"]) == 0
    text = capsys.readouterr().out
    begun = re.findall(r"^== (.*) ==$", text, re.MULTILINE)
    assert begun == list(ANALYSES)
    assert set(begun) >= {"demo", "white-noise", "calibrated-tau", "metrics", "rules"}
    for name in begun:
        assert f"verdict of {name}" in text
        table = pd.read_csv(tmp_path / "runs" / name / "summary.csv")
        assert table["steps"].tolist() == [20]
        assert f'href="{name}/report.html"' in (tmp_path / "runs" / "analyses.html").read_text()


def test_cost_measures_steps_side_by_side(tmp_path, capsys):
    words = ["--model", "mlp", "--microbatch-size", "4", "--repeats", "2"]
    assert main(["cost", "--what", "step", *words, "--output", str(tmp_path / "cost")]) == 0
    table = (tmp_path / "cost" / "step.csv").read_text().splitlines()
    kinds = [line.split(",")[0] for line in table]
    assert kinds == ["step", "plain loop", "Mean", "GAF", "masked GAF"]


def test_interrupted_run_goes_on(tmp_path, capsys, monkeypatch):
    """Ctrl-C in the middle: exit code 130, a checkpoint, and the same command finishes it."""
    import os
    import signal

    from gafscope.trainer.watchdog import Watchdog

    see = Watchdog.see

    def interrupting(self, step, decision):
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return see(self, step, decision)

    command = ["train", *QUICK, "--run-dir", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(Watchdog, "see", interrupting)
        assert main(command) == 130
    assert "same command" in capsys.readouterr().err
    assert len(load_run(tmp_path / "run").scalars) == 11
    assert main(command) == 0
    assert load_run(tmp_path / "run").scalars["step"].tolist() == list(range(30))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
