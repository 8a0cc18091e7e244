"""The threshold sweep: what is trained, what is compared, and what the text says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gafscope.analyses import get_analysis
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES
from gafscope.records import load_run

pytestmark = pytest.mark.timeout(300)

NOISY = "digits, 40% label noise"


def small(folder, **changes):
    settings = get_analysis("threshold-sweep").presets["quick"]
    train = replace(settings.train, steps=20, validate_every=10, run_dir=str(folder))
    train = replace(train, progress=False, **changes.pop("train", {}))
    return replace(settings, **({"taus": (2.0, 0.7), "seeds": 2} | changes), train=train)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thresholds")
    settings = small(folder)
    analysis = get_analysis("threshold-sweep")
    measured = analysis.measure(settings)
    conclusion = analysis.conclude(settings, measured.runs, measured.curves)
    return folder, settings, measured, conclusion


def test_the_plan_is_what_is_trained(study):
    folder, settings, measured, _ = study
    plan = get_analysis("threshold-sweep").plan(settings)
    assert len(plan) == len(measured.runs) == len(list(folder.iterdir())) == 2 * 2 * (1 + 2 * 2)
    assert {one.label_noise for one in plan} == {0.4, 0.0}
    assert {one.tau for one in plan if one.rule == "gaf"} == {0.7, 2.0}


def test_tau_2_is_averaging_and_a_strict_tau_lets_less_through(study):
    _, _, measured, _ = study
    for _, own in measured.runs.groupby(["data", "seed"]):
        rows = {
            (row["rule"], row["threshold"]): row
            for row in own.dropna(subset="threshold").to_dict("records")
        }
        averaging = own[own["rule"] == "averaging"].iloc[0]
        assert rows["GAF", 2.0]["test_accuracy"] == averaging["test_accuracy"]
        assert rows["GAF", 2.0]["accepted"] == 1
        assert rows["GAF", 0.7]["accepted"] < 1
        assert rows["yoked control", 0.7]["updates"] == rows["GAF", 0.7]["updates"]


def test_the_control_sees_fresh_microbatches(study):
    folder, _, _, _ = study
    name = "digits-40-label-noise-threshold-0.7"
    gaf, control = (
        load_run(folder / f"{name}-{rule}-seed0").scalars for rule in ("gaf", "yoked-control")
    )
    assert control["stepped"].tolist() == gaf["stepped"].tolist()
    assert control["loss"].tolist() != gaf["loss"].tolist()


def test_the_table_by_hand(study):
    _, _, measured, conclusion = study
    table = conclusion.table
    assert table[table["rule"] == "GAF"]["threshold"].tolist() == [0.7, 2.0] * 2
    runs = measured.runs[measured.runs["data"] == NOISY]
    gaf, control = (
        runs[(runs["rule"] == rule) & (runs["threshold"] == 0.7)]["test_accuracy"].to_numpy()
        for rule in ("GAF", "yoked control")
    )
    row = table[(table["data"] == NOISY) & (table["rule"] == "GAF")].iloc[0]
    assert row["over_yoked"] == pytest.approx(100 * (gaf - control).mean())
    averaging = runs[runs["rule"] == "averaging"]["test_accuracy"].to_numpy()
    assert row["over_averaging"] == pytest.approx(100 * (gaf - averaging).mean())


def test_tau_is_chosen_by_validation_not_by_test(study):
    _, settings, measured, _ = study
    runs = measured.runs.copy()
    filtering = runs["rule"] == "GAF"
    runs.loc[filtering, "validation_accuracy"] = runs["threshold"].map({0.7: 0.9, 2.0: 0.1})
    runs.loc[filtering, "test_accuracy"] = runs["threshold"].map({0.7: 0.2, 2.0: 0.8})
    verdict = get_analysis("threshold-sweep").conclude(settings, runs, measured.curves).verdict
    assert verdict.count("The best tau by validation is 0.7 (20.0%") == 2


def test_one_row_of_panels_a_data_set(study):
    _, _, measured, conclusion = study
    figures = FIGURES["threshold-sweep"](conclusion.table, measured.curves)
    assert len(figures["threshold-sweep"].axes) == 6
    assert figures["threshold-sweep"].axes[0].get_ylabel() == "test accuracy at the end (%)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"taus": ()}, "--taus"),
        ({"taus": (0.7, 2.5)}, "2.5"),
        ({"seeds": 0}, "seeds"),
        ({"train": {"validate_every": 21}}, "validate_every=21"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        get_analysis("threshold-sweep").run(small(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []
