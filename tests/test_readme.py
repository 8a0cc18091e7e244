"""The README's promises: its code runs as it stands, its test command is the one that CI runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    see, train, own_loop, judge, watch, agree = code_blocks()
    names: dict = {}
    exec(see, names)
    assert "Decision(" in capsys.readouterr().out
    names["loss"] = names["gs"].supervised(names["torch"].nn.functional.cross_entropy)
    names["macrobatches"] = [names["batch"]]
    names["validation_batch"] = names["batch"]
    exec(train.replace("steps=1000", "steps=5"), names)
    assert len(names["history"]) == 5
    before = [parameter.detach().clone() for parameter in names["model"].parameters()]
    exec(own_loop, names)
    after = names["model"].parameters()
    assert not all(map(names["torch"].equal, before, after))
    exec(judge, names)
    assert 0 < names["found"].tau < 2
    exec(watch, names)
    assert len(names["scope"].run.scalars) == 8
    names |= {"ddp_model": names["model"], "scheduler": None}
    with pytest.raises(names["gs"].UserError, match=r"torch\.distributed"):
        exec(agree, names)


def test_ci_runs_the_test_command_word_for_word():
    (command,) = re.findall(r"^    (python3 .*-m pytest)$", README, re.MULTILINE)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in ci


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", ["torch", "numpy", "pytest", "hypothesis"])
def test_constraints_pin_what_is_installed(name):
    from importlib.metadata import version

    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert version(name).split("+")[0] == pins[name]
