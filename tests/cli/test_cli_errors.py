"""A user's mistake: one message that says what to do, exit code 2, no traceback, no files."""

import pytest

from gafscope.cli import main


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GAFSCOPE_DATA", raising=False)
    return tmp_path


CASES = {
    "unknown command": (["trian"], ["trian", "'train'"]),
    "unknown analysis": (["analyses", "wite-noise"], ["wite-noise", "'white-noise'"]),
    "flag instead of an analysis": (["analyses", "--everything"], ["--all"]),
    "unknown preset": (["demo", "--preset", "papre"], ["papre", "'paper'"]),
    "preset without value": (["demo", "--preset"], ["--preset"]),
    "unknown dataset": (["train", "--data", "cifar10o"], ["cifar10o", "Did you mean 'cifar10"]),
    "unknown model": (["train", "--model", "resnet81"], ["resnet81", "'resnet18'"]),
    "unknown rule": (["train", "--rule", "gfa"], ["gfa", "'gaf'"]),
    "unknown optimizer": (["train", "--optimizer", "adamz"], ["adamz", "'adam"]),
    "unknown scheduler": (["train", "--scheduler", "plato"], ["plato", "'plateau'"]),
    "unknown sampling": (["train", "--balance", "classes"], ["classes", "iid"]),
    "unknown cost": (["cost", "--what", "stepp"], ["stepp", "'step'"]),
    "tau too large": (["train", "--tau", "2.5"], ["tau", "[0, 2]", "2.5"]),
    "tau negative": (["train", "--tau", "-0.1"], ["tau", "[0, 2]", "-0.1"]),
    "one microbatch": (["train", "--microbatches", "1"], ["microbatches=1", "at least 2"]),
    "unbalanced size": (
        ["train", "--balance", "given", "--microbatch-size", "15"],
        ["15", "10", "20"],
    ),
    "too few of a class": (
        ["train", "--balance", "given", "--microbatch-size", "640"],
        ["class", "128"],
    ),
    "more than there is": (["train", "--microbatch-size", "1000"], ["2000"]),
    "missing data": (["train", "--data", "cifar100"], ["cifar-100-python", "--data-dir"]),
    "missing data folder": (
        ["train", "--data", "cifar100", "--data-dir", "nowhere"],
        ["nowhere", "cifar-100-python"],
    ),
    "missing settings file": (["train", "--config", "none.yaml"], ["none.yaml"]),
    "label noise of 100%": (["train", "--label-noise", "1"], ["label_noise", "1"]),
    "no learning rate": (["train", "--lr", "0"], ["lr", "positive"]),
    "unknown device": (["train", "--device", "gpu"], ["gpu", "cuda"]),
    "two controls": (
        ["train", "--skip-rate", "0.5", "--yoked-to", "x"],
        ["yoked_to", "skip_rate"],
    ),
    "yoked to nothing": (["train", "--yoked-to", "nowhere"], ["nowhere"]),
    "no threads": (["train", "--threads", "0"], ["threads", "0"]),
    "unknown model option": (
        ["train", "--model-options", "hiden", "32"],
        ["hiden", "'hidden'"],
    ),
    "option of no dataset": (["train", "--data-options", "size", "3"], ["size"]),
}


@pytest.mark.parametrize("name", CASES)
def test_mistake_is_explained(name, capsys, empty_folder):
    arguments, words = CASES[name]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gafscope: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
    assert captured.out == ""
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("tua: 0.9", ["tua", "'tau'"]),
        ("- 1\n- 2", ["key: value"]),
        ("tau: [", ["YAML"]),
    ],
)
def test_mistake_in_a_settings_file(content, words, capsys, empty_folder):
    (empty_folder / "my.yaml").write_text(content)
    assert main(["train", "--config", "my.yaml"]) == 2
    message = capsys.readouterr().err
    assert "my.yaml" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "arguments",
    [["train", "--taw", "0.9"], ["train", "--tau", "high"], ["demo", "--seeds", "three"]],
)
def test_wrong_flags_and_values_exit_with_two(arguments, capsys, empty_folder):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert arguments[1] in captured.err
    assert "Traceback" not in captured.err
    assert list(empty_folder.iterdir()) == []


def test_ill_typed_value_in_a_settings_file(capsys, empty_folder):
    (empty_folder / "my.yaml").write_text("tau: high")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "my.yaml"])
    assert stop.value.code == 2
    assert "--tau" in capsys.readouterr().err


def test_diverging_run_stops_and_says_so(capsys, empty_folder):
    words = ["train", "--lr", "1e38", "--rule", "mean", "--steps", "60", "--no-progress"]
    assert main([*words, "--run-dir", "run"]) == 2
    message = capsys.readouterr().err
    assert "diverged" in message
    assert "learning rate" in message
