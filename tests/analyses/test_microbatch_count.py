"""The number of microbatches: what grows, what stays, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gafscope.analyses import get_analysis
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES

pytestmark = pytest.mark.timeout(300)


def small(folder, **changes):
    settings = get_analysis("microbatch-count").presets["quick"]
    train = replace(settings.train, steps=10, validate_every=5, run_dir=str(folder))
    train = replace(train, progress=False)
    return replace(settings, **({"counts": (4, 2), "seeds": 2} | changes), train=train)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("counts"))
    analysis = get_analysis("microbatch-count")
    measured = analysis.measure(settings)
    return settings, measured, analysis.conclude(settings, measured.runs, measured.curves)


def test_k_grows_at_constant_microbatches_and_at_constant_macrobatches(study):
    settings, measured, _ = study
    plan = get_analysis("microbatch-count").plan(settings)
    assert len(plan) == len(measured.runs) == 2 * 2 * 3 * 2
    sizes = {(one.microbatches, one.microbatch_size) for one in plan}
    assert sizes == {(2, 5), (4, 5), (2, 10)}


def test_equal_settings_in_both_grids_give_equal_runs(study):
    _, measured, _ = study
    runs = measured.runs[measured.runs["microbatches"] == 4]
    first, second = (own for _, own in runs.groupby("data"))
    for column in ("test_accuracy", "updates", "accepted"):
        assert first[column].tolist() == second[column].tolist()


def test_the_table_by_hand(study):
    _, measured, conclusion = study
    for row in conclusion.table.to_dict("records"):
        same = (measured.runs["data"] == row["data"]) & (
            measured.runs["microbatches"] == row["microbatches"]
        )
        own = measured.runs[same & (measured.runs["rule"] == row["rule"])]
        plain = measured.runs[same & (measured.runs["rule"] == "averaging")]
        assert row["stepped"] == pytest.approx((own["updates"] / own["steps"]).mean())
        time = own["milliseconds"].mean() / plain["milliseconds"].mean()
        assert row["over_averaging_time"] == pytest.approx(time)


def test_the_figures_are_drawn(study):
    _, measured, conclusion = study
    figures = FIGURES["microbatch-count"](conclusion.table, measured.curves)
    assert list(figures) == ["microbatch-count", "agreement-and-cost"]
    assert len(figures["microbatch-count"].axes) == 6
    agreement, cost = figures["agreement-and-cost"].axes
    assert [len(axes.lines) for axes in (agreement, cost)] == [2, 3]


@pytest.mark.parametrize("counts", [(), (1, 2), (2, 3)])
def test_mistakes_are_found_before_training(tmp_path, counts):
    with pytest.raises(UserError, match="counts must be at least 2"):
        get_analysis("microbatch-count").run(small(tmp_path, counts=counts))
    assert list(tmp_path.iterdir()) == []
