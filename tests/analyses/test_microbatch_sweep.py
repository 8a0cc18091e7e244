"""The sweep over microbatch sizes: the threshold of each size, and its control."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gafscope.analyses import get_analysis
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES

pytestmark = pytest.mark.timeout(300)


def small(folder, **changes):
    settings = get_analysis("microbatch-sweep").presets["quick"]
    train = replace(settings.train, steps=10, validate_every=5, run_dir=str(folder))
    train = replace(train, progress=False)
    changes = {"sizes": (4, 1), "taus": (0.8, 2.0), "seeds": 2} | changes
    return replace(settings, **changes, train=train)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    settings = small(folder)
    analysis = get_analysis("microbatch-sweep")
    measured = analysis.measure(settings)
    return folder, settings, measured, analysis.conclude(settings, measured.runs, measured.curves)


def test_the_plan_is_what_is_trained(study):
    folder, settings, measured, _ = study
    plan = get_analysis("microbatch-sweep").plan(settings)
    assert len(plan) == len(measured.runs) == len(list(folder.iterdir())) == 2 * 2 * (1 + 2 + 1)
    assert {one.microbatch_size for one in plan} == {1, 4}


def test_the_threshold_that_validates_best_has_the_control(study):
    _, _, measured, conclusion = study
    for size, own in measured.runs.groupby("microbatch_size"):
        means = own.dropna(subset="tau").groupby("tau")["validation_accuracy"].mean()
        best = means.idxmax()
        assert f"yoked control of GAF tau {best:g}" in set(own["rule"])
        here = conclusion.table[conclusion.table["microbatch_size"] == size]
        row = here[here["rule"] == "GAF"].iloc[0]
        assert row["tau"] == best
        control = own[own["rule"].str.startswith("yoked")]["test_accuracy"].mean()
        accuracy = own[own["tau"] == best]["test_accuracy"].mean()
        assert row["over_yoked"] == pytest.approx(100 * (accuracy - control))
        assert len(here[here["rule"].str.startswith("GAF tau")]) == 1


def test_the_test_split_chooses_nothing(study):
    _, settings, measured, conclusion = study
    runs = measured.runs.copy()
    runs["test_accuracy"] = 1 - runs["test_accuracy"]
    turned = get_analysis("microbatch-sweep").conclude(settings, runs, measured.curves)
    for table in (turned.table, conclusion.table):
        chosen = table[table["rule"] == "GAF"]["tau"].tolist()
        assert chosen == conclusion.table[conclusion.table["rule"] == "GAF"]["tau"].tolist()


def test_the_figure_tells_the_thresholds(study):
    _, _, measured, conclusion = study
    name = "microbatch-sweep"
    axes = FIGURES[name](conclusion.table, measured.curves)[name].axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert [label.split("\n")[0] for label in labels] == ["1", "4"]
    taus = conclusion.table[conclusion.table["rule"] == "GAF"]["tau"]
    assert [label.split("\n")[1] for label in labels] == [f"tau {tau:g}" for tau in taus]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": ()}, "sizes"),
        ({"sizes": (0, 5)}, "at least 1"),
        ({"taus": ()}, "--taus"),
        ({"taus": (3.0,)}, "3"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        get_analysis("microbatch-sweep").run(small(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []
