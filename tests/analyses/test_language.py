"""A language model on text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gafscope.analyses import get_analysis
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES
from gafscope.records import load_run

ANALYSIS = get_analysis("language")
RULES = ("averaging", "GAF", "yoked control", "same updates", "random skip")


def small(folder, **changes):
    settings = ANALYSIS.presets["quick"]
    train = {
        "data_options": {"context": "8", "size": "6000"},
        "model_options": {"dim": "8", "depth": "1", "heads": "2"},
        "microbatch_size": 3,
        "steps": 12,
        "validate_every": 4,
        "run_dir": str(folder),
        "progress": False,
        "tau": 1.0,
    }
    train |= changes.pop("train", {})
    changes = {"seeds": 2, "compositions": ("iid", "single")} | changes
    return replace(settings, train=replace(settings.train, **train), **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("language"))
    measured = ANALYSIS.measure(settings)
    return settings, measured, ANALYSIS.conclude(settings, measured.runs, measured.curves)


def own(measured, composition, rule, size=3):
    runs = measured.runs
    same = (runs["data"] == f"text, u = {size}") & (runs["composition"] == composition)
    return runs[same & (runs["rule"] == rule)].set_index("seed")


def test_the_plan_is_what_is_trained(study):
    settings, measured, _ = study
    folders = [path for path in measured.folder.iterdir() if (path / "config.yaml").exists()]
    # Two compositions with five rules, and averaging of single windows.
    assert len(ANALYSIS.plan(settings)) == len(folders) == len(measured.runs) == 2 * (2 * 5 + 1)
    single = load_run(measured.folder / "text-u-1-composition-iid-averaging-seed0").config
    assert (single["microbatch_size"], single["balance"], single["rule"]) == (1, "iid", "mean")


def test_distances_by_hand(study):
    _, measured, conclusion = study
    run = load_run(measured.folder / "text-u-3-composition-single-averaging-seed1")
    distance = run.scalars["distance_mean"]
    row = own(measured, "single", "averaging").loc[1]
    assert row["mean_distance"] == pytest.approx(distance.mean())
    assert row["late_distance"] == pytest.approx(distance.iloc[-1])
    assert row["distance_largest"] == distance.max()
    assert row["distance_q05"] == pytest.approx(distance.quantile(0.05))
    assert row["distance_q95"] == pytest.approx(distance.quantile(0.95))
    assert row["opposed"] == (distance > 1).mean()
    table = conclusion.table.set_index(["data", "composition", "rule"])
    seeds = own(measured, "single", "averaging")
    found = table.loc[("text, u = 3", "single", "averaging")]
    assert found["distance_largest"] == seeds["distance_largest"].max()
    assert found["mean_distance"] == pytest.approx(seeds["mean_distance"].mean())


def test_losses_by_hand(study):
    _, measured, conclusion = study
    table = conclusion.table.set_index(["data", "composition", "rule"])
    losses = {rule: own(measured, "iid", rule)["test_loss"] for rule in RULES}
    run = load_run(measured.folder / "text-u-3-composition-iid-gaf-seed0")
    assert losses["GAF"].loc[0] == run.summary["test_loss"]
    found = table.loc[("text, u = 3", "iid", "GAF")]
    for name, rule in (("averaging", RULES[0]), ("yoked", RULES[2]), ("random_skip", RULES[4])):
        expected = (losses[rule] - losses["GAF"]).mean()
        assert found[f"under_{name}"] == pytest.approx(expected)
    assert found["best_test_loss"] == pytest.approx(
        own(measured, "iid", "GAF")["best_test_loss"].mean()
    )


def test_tasks_disagree_and_training_helps(study):
    _, measured, _ = study
    iid, single = (own(measured, name, "averaging") for name in ("iid", "single"))
    assert (single["mean_distance"] > iid["mean_distance"]).all()
    # 256 bytes at random have 5.55 nats.
    assert (iid["test_loss"] < 5.4).all()


def test_the_verdict_and_the_figure(study):
    _, measured, conclusion = study
    assert "opposed would be 2" in conclusion.verdict
    largest = measured.runs[measured.runs["rule"] == "averaging"]["distance_largest"].max()
    assert f"Of all 72 steps by averaging the largest distance is {largest:.2f}" in (
        conclusion.verdict
    )
    assert "Of 2 comparisons" in conclusion.verdict
    assert set(measured.curves["rule"]) == {"averaging"}
    figure = FIGURES["language"](conclusion.table, measured.curves)["language"]
    labels = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert labels == ["at random\nu = 3", "one task\neach\nu = 3", "at random\nu = 1"]
    assert len(figure.axes[0].get_legend().get_texts()) == 3 + 1 - 1


def test_texts_of_ones_own(tmp_path):
    (tmp_path / "mine").mkdir()
    for name, words in (("a.txt", "one two three "), ("b.txt", "4 5 6 7 8 9 ")):
        (tmp_path / "mine" / name).write_text(words * 120)
    train = {"data_dir": str(tmp_path / "mine"), "steps": 4, "data_options": {"context": "4"}}
    settings = small(tmp_path / "runs", seeds=1, sizes=(), compositions=("single",), train=train)
    measured = ANALYSIS.measure(settings)
    assert len(measured.runs) == 5
    config = load_run(measured.folder / "text-u-3-composition-single-averaging-seed0").config
    assert config["data_dir"] == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compositions": ()}, ["--compositions"]),
        ({"compositions": ("true",)}, ["'true'", "single"]),
        ({"train": {"validate_every": 13}}, ["validate"]),
        ({"train": {"microbatches": 3}}, ["microbatches must be 2", "3"]),
        ({"train": {"model": "mlp"}}, ["go together", "mlp"]),
        ({"seeds": 0}, ["seeds"]),
        ({"compositions": ("given",), "train": {"microbatch_size": 4}}, ["multiple", "3 or 6"]),
    ],
)
def test_mistakes_are_explained(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        ANALYSIS.run(small(tmp_path, **changes))
    for word in words:
        assert word in str(error.value)
