"""Wrong labels in what GAF accepts and rejects, over a training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gafscope.aggregation import GAF
from gafscope.analyses import get_analysis
from gafscope.analyses.purity import purity
from gafscope.analyses.purity_study import PurityMeasure
from gafscope.analyses.stage_measures import draw_rows
from gafscope.calibration import calibrate
from gafscope.errors import UserError
from gafscope.gradients import gramian
from gafscope.plots.studies import FIGURES
from gafscope.trainer.job import assemble

ANALYSIS = get_analysis("purity")


def small(folder, **changes):
    settings = ANALYSIS.presets["quick"]
    train = {"steps": 10, "run_dir": str(folder), "progress": False} | changes.pop("train", {})
    changes = {"stages": 2, "rows": 24, "samples": 60, "draws": 30, "seeds": 2} | changes
    return replace(settings, train=replace(settings.train, **train), **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("purity"))
    measured = ANALYSIS.measure(settings)
    return settings, measured, ANALYSIS.conclude(settings, measured.runs, measured.curves)


def test_the_plan_is_what_is_trained(study):
    settings, measured, _ = study
    folders = [path for path in measured.folder.iterdir() if (path / "config.yaml").exists()]
    assert len(ANALYSIS.plan(settings)) == len(folders) == 4


def test_every_stage_level_and_kind_of_first_row(study):
    _, measured, conclusion = study
    # 2 rules, 2 seeds, the untrained network and 2 stages, 2 levels, 3 kinds of first row.
    assert len(measured.runs) == 2 * 2 * 3 * 2 * 3
    assert sorted(measured.runs["step"].unique()) == [0, 1, 10]
    assert set(measured.runs["level"]) == {"microbatches of 20", "single samples"}
    assert len(conclusion.table) == len(measured.runs) / 2
    assert set(conclusion.table["rule"]) == {"averaging", "GAF"}


def test_a_stage_by_hand(study):
    settings, measured, _ = study
    job = assemble(replace(settings.train, rule="mean", seed=1), None)
    data, model, loss = job.dataset.train, job.trainer.model, job.trainer.loss
    model.train()
    drawn = draw_rows(data, 24, 20, 1)
    assert len(drawn.unique()) == 480
    gram = gramian(model, loss, data.batch(drawn), 24)
    tau = calibrate(model, loss, data.batch(), microbatch_size=20, seed=1).tau
    shares = (data.targets != data.true_targets)[drawn].double().view(24, 20).mean(1)
    expected = purity(gram, shares, GAF(tau), microbatches=2, draws=30, seed=1).iloc[0]
    found = measured.runs[
        (measured.runs["rule"] == "averaging")
        & (measured.runs["seed"] == 1)
        & (measured.runs["step"] == 0)
        & (measured.runs["level"] == "microbatches of 20")
        & (measured.runs["first"] == "any")
    ].iloc[0]
    assert found["tau"] == pytest.approx(tau)
    for name in ("flipped_accepted", "flipped_rejected", "flipped_all", "accepted"):
        assert found[name] == pytest.approx(expected[name], nan_ok=True)
    assert found["flipped_all"] == pytest.approx(float(shares.mean()))


def test_purer_is_paired_with_the_base_rate(study):
    _, measured, conclusion = study
    row = conclusion.table[
        (conclusion.table["rule"] == "averaging")
        & (conclusion.table["level"] == "single samples")
        & (conclusion.table["step"] == 10)
        & (conclusion.table["first"] == "any")
    ].iloc[0]
    own = measured.runs[
        (measured.runs["rule"] == "averaging")
        & (measured.runs["level"] == "single samples")
        & (measured.runs["step"] == 10)
        & (measured.runs["first"] == "any")
    ]
    purer = 100 * (own["flipped_all"] - own["flipped_accepted"])
    assert row["purer"] == pytest.approx(purer.mean())
    assert row["tau"] == pytest.approx(own["tau"].mean())
    assert "points purer on average" in conclusion.verdict


def test_the_model_is_left_as_it_was(study):
    settings, _, _ = study
    train = replace(settings.train, model_options={"hidden": "16", "norm": "batch"})
    job = assemble(train, None)

    before = {name: value.clone() for name, value in job.trainer.model.state_dict().items()}
    job.trainer.model.train()
    found = PurityMeasure(16, 20, 2, 40, 10, 0.05)(job, 0, 0)
    assert len(found) == 6
    after = job.trainer.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(module.training for module in job.trainer.model.modules())


def test_the_figure(study):
    _, measured, conclusion = study
    figure = FIGURES["purity"](conclusion.table, measured.curves)["purity"]
    assert len(figure.axes) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 15}, ["rows", "16"]),
        ({"samples": 19}, ["samples", "20"]),
        ({"draws": 0}, ["draws"]),
        ({"train": {"label_noise": 0.0}}, ["label-noise", "0 of 1294"]),
        ({"train": {"microbatches": 1}}, ["microbatches", "2"]),
        ({"train": {"microbatch_size": 1}}, ["microbatch_size", "2"]),
        ({"rules": ("gav",)}, ["'gaf'"]),
    ],
)
def test_mistakes_are_told_before_the_first_training(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        ANALYSIS.run(small(tmp_path, **changes))
    for word in words:
        assert word in str(error.value)
    assert not list(tmp_path.glob("*/config.yaml"))
