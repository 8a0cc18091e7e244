"""Figure 5: averaging memorises noise, GAF does not, and GAF still learns real data."""

from dataclasses import replace

import pytest

from gafscope.analyses import get_analysis
from gafscope.records import load_run

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    analysis = get_analysis("white-noise")
    settings = analysis.presets["quick"]
    folder = str(tmp_path_factory.mktemp("noise"))
    train = replace(settings.train, run_dir=folder, progress=False)
    return analysis.run(replace(settings, seeds=1, train=train))


def row(result, data, rule):
    table = result.table
    return table[(table["data"] == data) & (table["rule"] == rule)].iloc[0]


def test_averaging_memorises_noise(result):
    assert row(result, "white noise", "averaging")["train_accuracy"] > 0.99


def test_gaf_refuses_noise(result):
    gaf = row(result, "white noise", "GAF")
    assert gaf["train_accuracy"] < 0.15
    assert gaf["accepted"] < 0.01


def test_gaf_learns_real_data_with_the_same_settings(result):
    assert row(result, "digits", "GAF")["train_accuracy"] > 0.95


def test_curves_hold_raw_and_rolling_distance(result):
    part = result.curves[
        (result.curves["data"] == "white noise") & (result.curves["rule"] == "averaging")
    ]
    # Every fifth step, and those that were validated.
    assert part["step"].tolist() == sorted({*range(0, 2000, 5), 499, 999, 1499, 1999})
    whole = load_run(result.folder / "white-noise-averaging-seed0").scalars["distance_mean"]
    assert part["distance"].iloc[-1] == whole.iloc[-1]
    assert part["rolling_distance"].iloc[-1] == pytest.approx(whole.tail(100).mean())


def test_verdict_says_what_was_found(result):
    assert "memorises" in result.verdict
    assert "always above 0.99" in result.verdict
