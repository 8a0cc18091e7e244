"""Optimizers behind a filter: what is trained, and that a rejected step leaves them untouched."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace

import pytest
from torch.utils import _pytree as pytree

from gafscope.analyses import get_analysis, optimizers
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES
from gafscope.trainer import TrainSettings
from gafscope.trainer.job import assemble

pytestmark = pytest.mark.timeout(300)

LIBRARY = importlib.util.find_spec("pytorch_optimizer") is not None
NEEDS_LIBRARY = pytest.mark.skipif(not LIBRARY, reason="needs pytorch-optimizer")


def small(folder, **changes):
    settings = get_analysis("optimizers").presets["quick"]
    train = replace(settings.train, steps=10, validate_every=5, run_dir=str(folder))
    changes = {"optimizers": ("sgd=0.3", "nesterov=0.05", "adamw=0.003"), "seeds": 2} | changes
    return replace(settings, **changes, train=replace(train, progress=False))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("optimizers"))
    analysis = get_analysis("optimizers")
    measured = analysis.measure(settings)
    return settings, measured, analysis.conclude(settings, measured.runs, measured.curves)


def test_the_plan_is_what_is_trained(study):
    settings, measured, _ = study
    plan = get_analysis("optimizers").plan(settings)
    assert len(plan) == len(measured.runs) == 3 * 2 * 3
    told = {(one.optimizer, one.lr, one.momentum, one.weight_decay) for one in plan}
    assert told == {("sgd", 0.3, 0.0, 0.0), ("sgd", 0.05, 0.9, 0.0), ("adamw", 0.003, 0.9, 0.1)}


def test_the_table_by_hand(study):
    _, measured, conclusion = study
    for row in conclusion.table[conclusion.table["rule"] == "GAF"].to_dict("records"):
        own = measured.runs[measured.runs["optimizer"] == row["optimizer"]]
        wide = own.pivot_table(index="seed", columns="rule", values="test_accuracy")
        lead = 100 * (wide["GAF"] - wide["yoked control"]).mean()
        assert row["over_yoked"] == pytest.approx(lead)


def test_the_figure_names_the_optimizers(study):
    _, measured, conclusion = study
    axes = FIGURES["optimizers"](conclusion.table, measured.curves)["optimizers"].axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["sgd", "nesterov", "adamw"]


def test_without_the_library_its_optimizers_are_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(optimizers, "_LIBRARY", "no_such_library")
    settings = small(tmp_path, optimizers=("sgd=0.3", "lamb=0.01"), seeds=1)
    result = get_analysis("optimizers").run(settings)
    assert set(result.table["optimizer"]) == {"sgd"}
    assert "Not trained, for want of pytorch-optimizer: lamb." in result.verdict
    assert "gafscope[optimizers]" in caplog.text
    with pytest.raises(UserError, match="no optimizer to train with"):
        get_analysis("optimizers").run(small(tmp_path, optimizers=("lamb=0.01",)))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("adan=0.1",), "'adan'"),
        (("adam",), "NAME=LEARNING-RATE"),
        (("adam=-1",), "positive"),
        ((), "no optimizer"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, texts, words):
    with pytest.raises(UserError, match=words):
        get_analysis("optimizers").run(small(tmp_path, optimizers=texts))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "sgd",
        "heavy-ball",
        "adam",
        "adamw",
        "rmsprop",
        pytest.param("lamb", marks=NEEDS_LIBRARY),
        pytest.param("shampoo", marks=NEEDS_LIBRARY),
    ],
)
def test_a_rejected_step_leaves_the_optimizer_untouched(name):
    settings = TrainSettings(
        optimizer=name,
        lr=0.01,
        weight_decay=0.1,
        tau=0.0,
        warmup_updates=3,
        model_options={"hidden": "4"},
        progress=False,
    )
    job = assemble(settings, None)
    job.trainer.fit(job.batches, 3)
    model, optimizer = job.trainer.model, job.trainer.optimizer
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    job.trainer.fit(job.batches, 6)
    assert (job.trainer.step, job.trainer.updates) == (6, 3)
    after = (model.state_dict(), optimizer.state_dict())
    old, new = pytree.tree_leaves(before), pytree.tree_leaves(after)
    assert len(old) == len(new) > 2
    for one, other in zip(old, new, strict=True):
        assert one.equal(other) if hasattr(one, "equal") else one == other


def test_heavy_ball_is_momentum_without_nesterov():
    found = {
        name: assemble(TrainSettings(optimizer=name, momentum=0.9), None).trainer.optimizer
        for name in ("sgd", "heavy-ball")
    }
    assert found["sgd"].param_groups[0]["nesterov"]
    assert not found["heavy-ball"].param_groups[0]["nesterov"]
    assert found["heavy-ball"].param_groups[0]["momentum"] == 0.9


@pytest.mark.skipif(LIBRARY, reason="pytorch-optimizer is installed")
def test_a_missing_library_is_explained():
    with pytest.raises(UserError, match=r"gafscope\[optimizers\]"):
        assemble(TrainSettings(optimizer="lamb"), None)
