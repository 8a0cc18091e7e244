"""How much the visiting order decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gafscope.analyses import get_analysis
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES
from gafscope.records import load_run

ANALYSIS = get_analysis("order")


def small(folder, **changes):
    settings = ANALYSIS.presets["quick"]
    train = {"steps": 12, "run_dir": str(folder), "progress": False, "validate_every": 5}
    train |= {"tau": 0.9} | changes.pop("train", {})
    changes = {"seeds": 2, "anchors": ("first", "best")} | changes
    return replace(settings, train=replace(settings.train, **train), **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("order"))
    measured = ANALYSIS.measure(settings)
    return settings, measured, ANALYSIS.conclude(settings, measured.runs, measured.curves)


def test_the_plan_is_what_is_trained(study):
    settings, measured, _ = study
    folders = [path for path in measured.folder.iterdir() if (path / "config.yaml").exists()]
    assert len(ANALYSIS.plan(settings)) == len(folders) == len(measured.runs) == 3 * 2 * 5
    rules = ["averaging", "GAF", "yoked control", "GAF, anchor best"]
    assert measured.runs["rule"].unique().tolist() == [*rules, "yoked control of GAF, anchor best"]


def row(measured, place, rule, seed=0):
    runs = measured.runs
    return runs[(runs["flipped"] == place) & (runs["rule"] == rule) & (runs["seed"] == seed)].iloc[
        0
    ]


@pytest.mark.parametrize("place", ["first", "last"])
def test_accepted_shares_by_hand(study, place):
    _, measured, _ = study
    run = load_run(measured.folder / f"digits-flipped-{place}-gaf-seed0")
    accepted = np.zeros((12, 4), dtype=bool)
    for step, (distances, stepped) in enumerate(
        zip(run.scalars["distance_to_sum"], run.scalars["stepped"], strict=True)
    ):
        later = [distance <= 0.9 for distance in distances[1:]]
        accepted[step] = [True, *later] if stepped else [False] * 4
        assert stepped == any(later)
        assert accepted[step].sum() == run.scalars["accepted"].iloc[step]
    column = 0 if place == "first" else 3
    found = row(measured, place, "GAF")
    assert found["flipped_accepted"] == pytest.approx(accepted[:, column].mean())
    assert found["clean_accepted"] == pytest.approx(np.delete(accepted, column, axis=1).mean())


def test_the_best_anchor_does_not_see_the_order(study):
    _, measured, _ = study
    both = [row(measured, place, "GAF, anchor best") for place in ("first", "last")]
    assert both[0]["accepted"] == both[1]["accepted"]
    assert both[0]["flipped_accepted"] == pytest.approx(both[1]["flipped_accepted"])
    first = [row(measured, place, "GAF")["flipped_accepted"] for place in ("first", "last")]
    assert first[0] > first[1]


def test_nothing_is_counted_where_no_row_is_all_wrong(study):
    _, measured, conclusion = study
    assert np.isnan(row(measured, "anywhere", "GAF")["flipped_accepted"])
    assert np.isnan(row(measured, "first", "averaging")["flipped_accepted"])
    assert "Wrong labels in the first microbatch, GAF:" in conclusion.verdict
    assert "Wrong labels anywhere, GAF:" in conclusion.verdict
    assert "Against GAF from the first row: anchor best" in conclusion.verdict


def test_the_figure(study):
    _, measured, conclusion = study
    figure = FIGURES["order"](conclusion.table, measured.curves)["order"]
    assert len(figure.axes) == 2 * 3
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["averaging", "GAF", "GAF, anchor best"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flipped": ("middle",)}, ["middle", "first, last, anywhere"]),
        ({"train": {"microbatches": 2}}, ["microbatches", "4"]),
        ({"anchors": ("firts",)}, ["'first'"]),
        ({"flipped": ("first",), "train": {"label_noise": 0.0}}, ["wrong label", "label_noise"]),
    ],
)
def test_mistakes_are_explained(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        ANALYSIS.run(small(tmp_path, **changes))
    for word in words:
        assert word in str(error.value)
