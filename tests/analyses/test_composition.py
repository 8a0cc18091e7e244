"""What microbatches are composed of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gafscope.analyses import get_analysis
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES
from gafscope.records import load_run

ANALYSIS = get_analysis("composition")


def small(folder, **changes):
    settings = ANALYSIS.presets["quick"]
    train = {"steps": 12, "run_dir": str(folder), "progress": False, "validate_every": 4}
    train |= changes.pop("train", {})
    changes = {"seeds": 2, "compositions": ("iid", "single")} | changes
    return replace(settings, train=replace(settings.train, **train), **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("composition"))
    measured = ANALYSIS.measure(settings)
    return settings, measured, ANALYSIS.conclude(settings, measured.runs, measured.curves)


def test_the_plan_is_what_is_trained(study):
    settings, measured, _ = study
    folders = [path for path in measured.folder.iterdir() if (path / "config.yaml").exists()]
    assert len(ANALYSIS.plan(settings)) == len(folders) == len(measured.runs) == 2 * 2 * 5


def test_controls_are_of_the_same_composition(study):
    _, measured, _ = study
    for folder in measured.folder.iterdir():
        if (folder / "config.yaml").exists():
            name = folder.name.split("composition-")[1].split("-")[0]
            assert load_run(folder).config["balance"] == name


def test_single_class_microbatches_disagree(study):
    _, measured, conclusion = study
    table = conclusion.table.set_index(["composition", "rule"])
    means = [table.loc[(name, "averaging"), "mean_distance"] for name in ("iid", "single")]
    assert means[1] > means[0] + 0.1
    run = load_run(measured.folder / "digits-composition-single-averaging-seed1")
    own = measured.runs[
        (measured.runs["composition"] == "single")
        & (measured.runs["rule"] == "averaging")
        & (measured.runs["seed"] == 1)
    ]
    assert own["mean_distance"].iloc[0] == pytest.approx(run.scalars["distance_mean"].mean())


def test_similar_samples_are_drawn_from_groups(tmp_path):
    settings = small(tmp_path, compositions=("similar",), rules=("gaf:tau=2",), seeds=1)
    measured = ANALYSIS.measure(settings)
    assert load_run(tmp_path / "digits-composition-similar-averaging-seed0").config["balance"] == (
        "similar"
    )
    distance = measured.runs.set_index("rule")["mean_distance"]
    assert distance["averaging"] == pytest.approx(distance["gaf tau=2"], abs=1e-6)


def test_leads_by_hand(study):
    _, measured, conclusion = study
    part = measured.runs[measured.runs["composition"] == "iid"]
    wide = part.pivot(index="seed", columns="rule", values="test_accuracy")
    table = conclusion.table.set_index(["composition", "rule"])
    lead = 100 * (wide["GAF"] - wide["yoked control"]).mean()
    assert table.loc[("iid", "GAF"), "over_yoked"] == pytest.approx(lead)
    assert "single, GAF: distance" in conclusion.verdict


def test_what_never_steps_is_named(study):
    settings, measured, _ = study
    runs = measured.runs.copy()
    runs.loc[(runs["composition"] == "single") & (runs["rule"] == "GAF"), "updates"] = 0
    verdict = ANALYSIS.conclude(settings, runs, measured.curves).verdict
    assert "No update was ever made with single (GAF)." in verdict


def test_the_figure(study):
    _, measured, conclusion = study
    assert set(measured.curves["data"]) == {"digits, composition iid"}
    figure = FIGURES["composition"](conclusion.table, measured.curves)["composition"]
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["at random", "one given\nclass each"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compositions": ()}, ["--compositions"]),
        ({"compositions": ("sorted",)}, ["sorted", "iid"]),
        ({"train": {"validate_every": 13}}, ["validate"]),
        ({"seeds": 0}, ["seeds"]),
    ],
)
def test_mistakes_are_explained(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        ANALYSIS.run(small(tmp_path, **changes))
    for word in words:
        assert word in str(error.value)
