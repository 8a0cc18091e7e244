"""The long run: ends beside best checkpoints, and the controls."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gafscope.analyses import get_analysis
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES

pytestmark = pytest.mark.timeout(300)


def small(folder, **changes):
    settings = get_analysis("long-run").presets["quick"]
    train = replace(settings.train, steps=30, validate_every=10, run_dir=str(folder))
    return replace(settings, seeds=2, train=replace(train, progress=False, **changes))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("long"))
    analysis = get_analysis("long-run")
    measured = analysis.measure(settings)
    return settings, measured, analysis.conclude(settings, measured.runs, measured.curves)


def test_the_plan_is_what_is_trained(study):
    settings, measured, _ = study
    assert len(get_analysis("long-run").plan(settings)) == len(measured.runs) == 8


def test_what_is_lost_after_the_best_validation(study):
    _, measured, conclusion = study
    runs, curves = measured.runs, measured.curves
    for row in conclusion.table.to_dict("records"):
        own = runs[runs["rule"] == row["rule"]]
        lost = 100 * (own["best_validation_accuracy"] - own["validation_accuracy"])
        assert row["validation_lost"] == pytest.approx(lost.mean(), nan_ok=True)
    averaging = curves[curves["rule"] == "averaging"]
    best = averaging.groupby("seed")["validation_accuracy"].max().to_numpy()
    found = runs[runs["rule"] == "averaging"]["best_validation_accuracy"].to_numpy()
    assert found == pytest.approx(best, abs=1e-6)


def test_the_controls_make_as_many_updates(study):
    _, measured, _ = study
    updates = measured.runs.pivot_table(index="seed", columns="rule", values="updates")
    assert (updates["GAF"] < updates["averaging"]).all()
    assert (updates["yoked control"] == updates["GAF"]).all()
    assert (updates["same updates"] == updates["GAF"]).all()


@pytest.mark.parametrize(("fall", "words"), [(0.2, "Averaging overfits"), (0.0, "not shown")])
def test_overfitting_is_claimed_only_when_it_is_shown(study, fall, words):
    settings, measured, _ = study
    runs = measured.runs.copy()
    noise = 0.01 * runs["seed"]
    runs["validation_accuracy"] = runs["best_validation_accuracy"] - fall - noise
    verdict = get_analysis("long-run").conclude(settings, runs, measured.curves).verdict
    assert words in verdict


def test_the_figure_shows_every_rule(study):
    _, measured, conclusion = study
    figure = FIGURES["long-run"](conclusion.table, measured.curves)["long-run"]
    names = figure.axes[0].get_legend_handles_labels()[1]
    assert names == ["averaging", "GAF", "yoked control", "same updates"]
    assert figure.axes[1].get_ylabel() == "validation accuracy (%)"


def test_a_run_that_never_validates_is_refused(tmp_path):
    with pytest.raises(UserError, match="validate_every=31"):
        get_analysis("long-run").run(small(tmp_path, validate_every=31))
    assert list(tmp_path.iterdir()) == []
