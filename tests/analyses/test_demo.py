"""The demo as its user runs it: its claims hold and its control stands beside them."""

import re

import pandas as pd
import pytest

from gafscope.cli import main

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(["demo", "--no-progress", "--run-dir", str(folder)]) == 0
    table = pd.read_csv(folder / "summary.csv")
    return folder, table, text.getvalue()


def row(table, data, rule):
    return table[table["data"].str.startswith(data) & (table["rule"] == rule)].iloc[0]


def test_averaging_ends_12_points_below_gaf(demo):
    _, table, _ = demo
    gaf, mean = (row(table, "digits", rule) for rule in ("GAF", "averaging"))
    assert gaf["seeds"] == mean["seeds"] == 3
    assert gaf["test_accuracy"] - mean["test_accuracy"] >= 0.12
    assert mean["train_accuracy"] > 0.9, "averaging memorises wrong labels"
    assert gaf["test_accuracy_low"] < gaf["test_accuracy"] < gaf["test_accuracy_high"]


def test_yoked_control_steps_as_often_and_is_printed(demo):
    _, table, text = demo
    gaf, yoked = (row(table, "digits", rule) for rule in ("GAF", "yoked control"))
    assert yoked["updates"] == gaf["updates"]
    assert yoked["accepted"] == 1.0
    assert "yoked control" in text
    assert "What the control explains" in " ".join(text.split())


def test_white_noise_pair(demo):
    _, table, _ = demo
    assert row(table, "white noise", "averaging")["train_accuracy"] > 0.99
    gaf = row(table, "white noise", "GAF")
    assert gaf["train_accuracy"] < 0.15
    assert gaf["accepted"] < 0.01


def test_files_are_where_the_text_says(demo):
    folder, _, text = demo
    paths = re.findall(r"^  (\S+)$", text, re.MULTILINE)
    assert len(paths) == 7
    for path in paths:
        assert path.startswith(str(folder))
        assert pd.io.common.file_exists(path)
    assert (folder / "digits-40-label-noise-gaf-seed0" / "config.yaml").exists()
