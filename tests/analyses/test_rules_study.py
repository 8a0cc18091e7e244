"""The comparison of rules: pairs, controls and what the text claims."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from gafscope.analyses import get_analysis
from gafscope.analyses.rules_verdict import verdict
from gafscope.errors import UserError
from gafscope.records import load_run

pytestmark = pytest.mark.timeout(300)

SAMPLES = "digits-40-label-noise-equal-samples-30-macrobatches"
UPDATES = "digits-40-label-noise-equal-updates-10"


def small(folder, **changes):
    settings = get_analysis("rules").presets["quick"]
    train = replace(settings.train, steps=30, run_dir=str(folder), progress=False, tau=0.7)
    changes = {"rules": ("gaf", "multi-krum"), "updates": 10, "seeds": 2} | changes
    return replace(settings, train=train, **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    settings = small(folder)
    return folder, settings, get_analysis("rules").run(settings)


def one(table, kind, rule):
    return table[table["data"].str.contains(kind) & (table["rule"] == rule)].iloc[0]


def test_every_rule_is_beside_its_control_in_both_comparisons(study):
    _, _, result = study
    assert list(result.table["rule"]) == ["averaging", "gaf", "multi-krum"] * 2
    for kind in ("equal samples", "equal updates"):
        averaging, gaf = (one(result.table, kind, rule) for rule in ("averaging", "gaf"))
        gain = 100 * (gaf["test_accuracy"] - averaging["test_accuracy"])
        assert gaf["points_over_averaging"] == pytest.approx(gain)
        gain = 100 * (gaf["test_accuracy"] - gaf["control_accuracy"])
        assert gaf["points_over_control"] == pytest.approx(gain)
        assert gaf["points_over_control_low"] < gain < gaf["points_over_control_high"]
        assert pd.isna(averaging["points_over_averaging"])
    assert one(result.table, "equal samples", "gaf")["steps"] == 30
    assert one(result.table, "equal samples", "gaf")["updates"] < 30
    assert set(result.table[result.table["data"].str.contains("equal updates")]["updates"]) == {10}
    assert one(result.table, "equal updates", "gaf")["steps"] > 10


def test_a_control_steps_when_its_rule_stepped_on_other_samples(study):
    folder, _, _ = study
    for comparison in (SAMPLES, UPDATES):
        gaf = load_run(folder / f"{comparison}-gaf-seed0")
        control = load_run(folder / f"{comparison}-yoked-to-gaf-seed0")
        assert control.scalars["stepped"].tolist() == gaf.scalars["stepped"].tolist()
        assert control.scalars["loss"].tolist() != gaf.scalars["loss"].tolist()
        assert control.config["rule"] == "mean"


def test_rules_that_always_step_share_averaging_of_fresh_microbatches(study):
    folder, _, result = study
    fresh = load_run(folder / f"{SAMPLES}-averaging-fresh-microbatches-seed0")
    assert fresh.scalars["stepped"].all()
    assert not (folder / f"{SAMPLES}-yoked-to-multi-krum-seed0").exists()
    accuracies = [
        one(result.table, "equal samples", rule)["control_accuracy"]
        for rule in ("averaging", "multi-krum")
    ]
    assert accuracies[0] == accuracies[1]


def test_a_second_call_trains_nothing(study):
    folder, settings, result = study
    times = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("scalars.jsonl")}
    again = get_analysis("rules").run(settings)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    pd.testing.assert_frame_equal(again.table, result.table)


def test_without_validation_nothing_is_said_of_the_best_checkpoint(study):
    from gafscope.plots.rules_study import plot_rules

    _, _, result = study
    assert "Nothing was validated" in result.verdict
    assert list(plot_rules(result.table, result.curves)) == ["rules"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"updates": 31}, "steps=30"),
        ({"seeds": 0}, "seeds"),
        ({"rules": ("gav",)}, "'gaf'"),
        ({"rules": ("gaf:anchor=last",)}, "last"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, changes, word):
    with pytest.raises(UserError, match=word):
        get_analysis("rules").run(small(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def line(kind, rule, over_averaging, over_control, updates=10.0):
    row = {"data": f"digits, {kind}", "rule": rule, "test_accuracy": 0.8, "updates": updates}
    row["best_test_accuracy"] = 0.9
    for name, (mean, margin) in (
        ("points_over_averaging", over_averaging),
        ("points_over_control", over_control),
    ):
        row |= {name: mean, f"{name}_low": mean - margin, f"{name}_high": mean + margin}
    return row


def test_the_verdict_claims_no_more_than_the_intervals():
    nothing, nan = (0.0, 1.0), (float("nan"), 0.0)
    table = pd.DataFrame(
        [
            line("equal samples", "averaging", nan, nothing),
            line("equal samples", "good", (5.0, 1.0), (4.0, 1.0)),
            line("equal samples", "early stopper", (5.0, 1.0), nothing),
            line("equal samples", "bad", (-5.0, 1.0), (-6.0, 1.0)),
            line("equal updates", "averaging", nan, nothing),
            line("equal updates", "good", nothing, nothing, updates=4.0),
        ]
    )
    samples, updates, caveats = verdict(table, 0.7).split("\n\n")
    assert "Only good is above both" in samples
    assert "good (+5.0 points [4.0, 6.0]) and early stopper (+5.0" in samples
    assert "bad (-6.0 points [-7.0, -5.0]) is below" in samples
    assert "no rule ends above it" in samples
    assert "No rule is above both" in updates
    assert "Too few updates within the allowed macrobatches: good (4)" in caveats
    assert "Of the 8 intervals about 0.4" in caveats
