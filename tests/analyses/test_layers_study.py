"""Which parts disagree, and filtering by model, layer and bucket."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gafscope.aggregation import GAF
from gafscope.analyses import get_analysis
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES
from gafscope.records import load_run
from gafscope.trainer.options import make_rule

ANALYSIS = get_analysis("layers")
BUCKETS = "by-bucket rule=gaf bytes=20000"


def small(folder, **changes):
    settings = ANALYSIS.presets["quick"]
    train = {"steps": 20, "run_dir": str(folder), "progress": False, "validate_every": 10}
    train |= {"record_layers_every": 4} | changes.pop("train", {})
    return replace(settings, **{"seeds": 2} | changes, train=replace(settings.train, **train))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("layers"))
    measured = ANALYSIS.measure(settings)
    return settings, measured, ANALYSIS.conclude(settings, measured.runs, measured.curves)


def test_the_plan_is_what_is_trained(study):
    settings, measured, _ = study
    folders = [path for path in measured.folder.iterdir() if (path / "config.yaml").exists()]
    assert len(ANALYSIS.plan(settings)) == len(folders) == len(measured.runs) == 2 * 10
    assert measured.runs["rule"].unique().tolist() == [
        "averaging",
        "averaging, smaller lr",
        "GAF",
        "yoked control",
        "same updates",
        "random skip",
        "by-layer rule=gaf",
        "yoked control of by-layer rule=gaf",
        BUCKETS,
        f"yoked control of {BUCKETS}",
    ]


def test_the_rules_share_tau_but_decide_on_other_parts(study):
    settings, measured, _ = study
    runs = measured.runs.set_index(["rule", "seed"])
    rules = [make_rule(plan) for plan in ANALYSIS.plan(settings) if plan.rule.startswith("by-")]
    assert {rule.rule for rule in rules} == {GAF(tau=0.75)}
    # A layer that is skipped does not skip the step.
    assert runs.loc[("by-layer rule=gaf", 0), "updates"] > runs.loc[("GAF", 0), "updates"]
    shares = runs["accepted_share"].dropna()
    assert set(shares.index.get_level_values(0)) == {"by-layer rule=gaf", BUCKETS}
    assert shares.between(0, 1).all()


def test_parts_by_hand(study):
    _, measured, conclusion = study
    folder = next(p for p in measured.folder.iterdir() if p.name.endswith("4-averaging-seed1"))
    run = load_run(folder)
    name = "layers.3.weight"
    distances = []
    for step in range(0, 20, 4):
        matrix = run.layer_matrices(step)[name]
        distances.append(1 - matrix[0, 1] / np.sqrt(matrix[0, 0] * matrix[1, 1]))
    own = measured.runs.set_index(["rule", "seed"]).loc[("averaging", 1)]
    assert own[f"distance of {name}"] == pytest.approx(np.mean(distances))
    assert own[f"within tau, {name}"] == np.mean(np.array(distances) <= 0.75)
    parts = conclusion.table[conclusion.table["part"] != "-"].set_index("part")
    assert parts.index.tolist()[0] == "whole model"
    assert len(parts) == 1 + 6
    both = measured.runs[measured.runs["rule"] == "averaging"][f"distance of {name}"]
    assert parts.loc[name, "part_distance"] == pytest.approx(both.mean())


def test_leads_by_hand(study):
    _, measured, conclusion = study
    wide = measured.runs.pivot(index="seed", columns="rule", values="test_accuracy")
    rules = conclusion.table[conclusion.table["part"] == "-"].set_index("rule")
    lead = 100 * (wide[BUCKETS] - wide[f"yoked control of {BUCKETS}"]).mean()
    assert rules.loc[BUCKETS, "over_yoked"] == pytest.approx(lead)
    assert f"Noise 40%, {BUCKETS}:" in conclusion.verdict
    assert "whole model is" in conclusion.verdict


def test_the_figures(study):
    _, measured, conclusion = study
    figures = FIGURES["layers"](conclusion.table, measured.curves)
    assert set(figures) == {"layers", "parts"}
    assert len(figures["parts"].axes) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rules": ("by-layer:rule=ema-gate",)}, ["by-layer", "ByLayer", "weighting"]),
        ({"rules": ("by-bucket:rule=gaf,bytes=0",)}, ["bytes", "0"]),
        ({"train": {"record_layers_every": 0}}, ["record_layers_every"]),
        ({"train": {"validate_every": 21}}, ["validate"]),
        ({"seeds": 0}, ["seeds"]),
    ],
)
def test_mistakes_are_told_before_the_first_training(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        ANALYSIS.run(small(tmp_path, **changes))
    assert any(word in str(error.value) for word in words)
    assert list(tmp_path.iterdir()) == []
