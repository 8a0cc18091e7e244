"""The user's own code: what goes wrong in it is said in one sentence, with file and line."""

import sys
import textwrap

import pytest
import torch

from gafscope.cli.problem import load_problem
from gafscope.errors import UserError

GOOD = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")

def data(n=12):
    return torch.ones(n, 4), torch.arange(n) % 3

def build():
    return nn.Linear(4, 3), loss, data()

def labelled():
    return nn.Linear(4, 3), loss, data(), {"true_targets": torch.zeros(12, dtype=torch.int64)}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module of its own name into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def write(name, text):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_a_function_of_the_current_folder(write):
    write("own_good", GOOD)
    task = load_problem("own_good:build")
    assert task.name == "build"
    assert task.model.weight.shape == (3, 4)
    assert task.data[1].tolist() == [0, 1, 2] * 4
    assert task.true_targets is None
    assert load_problem("own_good:labelled").true_targets.tolist() == [0] * 12


def test_a_function_in_a_package(write):
    write("own_package.inner", GOOD)
    assert load_problem("own_package.inner:build").name == "build"


def test_trying_the_loss_leaves_the_model_alone(write):
    write(
        "own_norm",
        GOOD
        + """
def normed():
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), loss, data()
""",
    )
    task = load_problem("own_norm:normed")
    assert torch.equal(task.model[0].running_mean, torch.zeros(4))
    assert int(task.model[0].num_batches_tracked) == 0


SPELLINGS = {
    "no function named": ("own_good", ["package.module:function", "'own_good'"]),
    "a path": ("./own_good.py:build", ["package.module:function", "own_good.py"]),
    "misspelt module": ("own_goodd:build", ["no module 'own_goodd'", "Did you mean 'own_good'?"]),
    "misspelt package": ("own_pack.inner:build", ["no module 'own_pack'"]),
    "misspelt function": ("own_good:biuld", ["biuld", "Did you mean 'build'?"]),
    "no function": ("own_good:torch", ["without arguments", "type is module"]),
    "arguments wanted": ("own_good:loss", ["must take no arguments", "'model'"]),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_wrong_spelling(case, write):
    write("own_good", GOOD)
    spec, words = SPELLINGS[case]
    with pytest.raises(UserError) as caught:
        load_problem(spec)
    for word in words:
        assert word in str(caught.value)


# What the module ends with, the line that fails (counted from the end of GOOD), words.
BROKEN = {
    "import": ("import nothing_of_this_name", 1, ["ModuleNotFoundError", "nothing_of_this_name"]),
    "syntax": ("def f(:", 1, ["SyntaxError"]),
    "at import": ("1 / 0", 1, ["ZeroDivisionError"]),
    "leaving": ("raise SystemExit(3)", 1, ["sys.exit(3)"]),
    "inside": ("def f():\n    return unknown_thing", 2, ["NameError", "unknown_thing", "in f"]),
    "inside the loss": (
        "def bad(model, batch):\n    return model(batch[0]).nope()\n"
        "def f():\n    return nn.Linear(4, 3), bad, data()",
        2,
        ["The loss", "AttributeError", "nope", "in bad"],
    ),
    "inside the model": (
        "def f():\n    return nn.Linear(5, 3), loss, data()",
        None,
        ["The loss", "RuntimeError", "mat1 and mat2"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_message_names_file_and_line(case, write):
    text, line, words = BROKEN[case]
    path = write("own_broken", GOOD + text)
    with pytest.raises(UserError) as caught:
        load_problem("own_broken:f")
    message = str(caught.value)
    for word in words:
        assert word in message
    if line is not None:
        assert f"at {path}, line {GOOD.count(chr(10)) + line}" in message
    assert "\n" not in message


RETURNS = {
    "nothing": ("None", ["(model, loss, data)", "NoneType"]),
    "two": ("nn.Linear(4, 3), loss", ["2 parts"]),
    "no model": ("loss, loss, data()", ["first part", "torch.nn.Module", "function"]),
    "no loss": ("nn.Linear(4, 3), 3, data()", ["second part", "int"]),
    "no tensors": ("nn.Linear(4, 3), loss, [1, 2]", ["made of tensors", "int"]),
    "uneven": ("nn.Linear(4, 3), loss, (torch.ones(3, 4), torch.ones(2))", ["[2, 3]"]),
    "fourth part": ("nn.Linear(4, 3), loss, data(), {'true': 1}", ["'true_targets'", "['true']"]),
    "fourth no dict": ("nn.Linear(4, 3), loss, data(), 7", ["'true_targets'", "type int"]),
    "labels of another size": (
        "nn.Linear(4, 3), loss, data(), {'true_targets': torch.zeros(5)}",
        ["12 samples", "(5,)"],
    ),
    "loss of another shape": (
        "nn.Linear(4, 3), lambda model, batch: model(batch[0]), data()",
        ["(4,)", "(4, 3)"],
    ),
}


@pytest.mark.parametrize("case", RETURNS)
def test_wrong_returns(case, write):
    text, words = RETURNS[case]
    write("own_returns", f"{GOOD}def f():\n    return {text}\n")
    with pytest.raises(UserError) as caught:
        load_problem("own_returns:f")
    for word in words:
        assert word in str(caught.value)
