"""The cost of rules: every rule timed beside averaging and GAF, or a note that says why not."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from gafscope.analyses.rules_cost import RulesCostSettings, measure_rules_cost, target_sentence
from gafscope.errors import UserError

TINY = {"model": "cnn", "microbatch_size": 2, "repeats": 3, "threads": 1, "channels_last": False}


@pytest.fixture(scope="module")
def table():
    rules = ("leave-one-out", "krum", "trimmed-mean")
    return measure_rules_cost(RulesCostSettings(rules=rules, microbatches=(2, 8), **TINY))


def one(table, k, rule):
    return table[(table["k"] == k) & (table["rule"] == rule)].iloc[0]


def test_averaging_and_gaf_are_the_bases(table):
    assert table["rule"].tolist() == ["mean", "gaf", "leave-one-out", "krum", "trimmed-mean"] * 2
    for k in (2, 8):
        assert one(table, k, "mean")["ratio_to_mean"] == 1
        assert one(table, k, "gaf")["ratio_to_gaf"] == 1
        row = one(table, k, "leave-one-out")
        assert row["ratio_to_gaf_low"] <= row["ratio_to_gaf"] <= row["ratio_to_gaf_high"]
        assert 0 < row["decision_us"] < 1e6 * row["seconds"] * 20
    # At tau = 2 all is accepted, so that no cheaper step is timed.
    assert (table["stepped"].dropna() == 1).all()


def test_how_a_rule_runs(table):
    ways = {row["rule"]: row["way"] for row in table.to_dict("records")}
    assert ways["mean"] == ways["gaf"] == "streams"
    assert ways["leave-one-out"] == ways["krum"] == "holds k gradients"
    assert ways["trimmed-mean"] == "needs rows"
    assert math.isnan(one(table, 8, "trimmed-mean")["decision_us"])
    assert one(table, 8, "trimmed-mean")["seconds"] > 0


def test_calibrations_are_spread_over_the_steps_between_them():
    settings = RulesCostSettings(rules=("calibrated-gaf:every=50",), microbatches=(8,), **TINY)
    table = measure_rules_cost(settings).set_index("rule")
    share = table.loc["calibrated-gaf every=50", "calibrating"]
    # A calibration differentiates the macrobatch as a step does, and takes no less than a tenth.
    assert 0.1 / 50 < share < 100 / 50
    assert math.isnan(table.loc["gaf", "calibrating"])


def test_rules_that_need_more_microbatches_say_so(table):
    krum = one(table, 2, "krum")
    assert "at least 5" in krum["note"]
    assert math.isnan(krum["seconds"])
    assert one(table, 8, "krum")["note"] == ""
    assert one(table, 8, "krum")["seconds"] > 0


def test_the_target_is_judged_at_8_for_weightings_only():
    rows = [
        (8, "mean", "streams", 0.9),
        (8, "fast", "holds k gradients", 1.01),
        (8, "slow", "holds k gradients", 1.5),
        (8, "mask", "needs rows", 3.0),
        (2, "fast", "holds k gradients", 9.0),
    ]
    table = pd.DataFrame(rows, columns=["k", "rule", "way", "ratio_to_gaf"])
    table = table.assign(seconds=0.1, decision_us=100.0)
    sentence = target_sentence(table)
    assert "met by 1 of 2, missed by slow (1.500)" in sentence
    assert "at most 0.10% of a step" in sentence
    assert target_sentence(table[table["k"] == 2]) == ""


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"microbatches": (1,)}, "microbatches"),
        ({"repeats": 0}, "repeats"),
        ({"rules": ("krumm",)}, "'krum'"),
        ({"rules": ("top-m",)}, "'top-m' needs m"),
    ],
)
def test_mistakes_are_explained(changes, word):
    with pytest.raises(UserError, match=word):
        measure_rules_cost(RulesCostSettings(**(TINY | changes)))
