"""Figures 1 and 3: the distance over a training, whole and by layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gafscope.analyses import get_analysis
from gafscope.analyses.layer_distances import layer_distances
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES
from gafscope.records import load_run

ANALYSIS = get_analysis("dynamics")


def small(folder, **changes):
    settings = ANALYSIS.presets["quick"]
    train = {"steps": 40, "run_dir": str(folder), "progress": False, "validate_every": 10}
    train |= changes.pop("train", {})
    return replace(
        settings,
        **{"seeds": 2, "records": 20} | changes,
        train=replace(settings.train, **train),
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("dynamics"))
    measured = ANALYSIS.measure(settings)
    return settings, measured, ANALYSIS.conclude(settings, measured.runs, measured.curves)


def test_the_plan_is_what_is_trained(study):
    settings, measured, _ = study
    folders = [path for path in measured.folder.iterdir() if (path / "config.yaml").exists()]
    assert len(ANALYSIS.plan(settings)) == len(folders) == 4


def test_phases_are_means_over_a_twentieth_of_the_steps(study):
    _, measured, conclusion = study
    run = load_run(measured.folder / "digits-40-label-noise-averaging-seed1")
    distance = run.scalars["distance_mean"]
    row = measured.runs[
        (measured.runs["data"] == "digits, 40% label noise")
        & (measured.runs["seed"] == 1)
        & (measured.runs["part"] == "whole model")
    ].iloc[0]
    pairs = distance.to_numpy().reshape(20, 2).mean(1)
    assert row["early"] == pytest.approx(pairs[0])
    assert row["lowest"] == pytest.approx(pairs.min())
    assert row["late"] == pytest.approx(pairs[-1])
    assert row["late_highest"] == pytest.approx(distance.tail(2).max())
    assert row["late_above_one"] == (distance.tail(2) > 1).mean()
    table = conclusion.table.set_index(["data", "part"])
    both = measured.runs[
        (measured.runs["data"] == "digits, 40% label noise")
        & (measured.runs["part"] == "whole model")
    ]["late"]
    assert table.loc[("digits, 40% label noise", "whole model"), "late"] == pytest.approx(
        both.mean()
    )


def test_each_layer_has_its_own_distance(study):
    _, measured, conclusion = study
    run = load_run(measured.folder / "digits-averaging-seed0")
    found = layer_distances(run)
    assert found["step"].unique().tolist() == list(range(0, 40, 2))
    step, name = 38, found["part"].iloc[0]
    matrix = run.layer_matrices(step)[name]
    expected = 1 - matrix[0, 1] / np.sqrt(matrix[0, 0] * matrix[1, 1])
    row = found[(found["step"] == step) & (found["part"] == name)]["distance"].iloc[0]
    assert row == pytest.approx(expected)
    own = measured.runs[(measured.runs["data"] == "digits") & (measured.runs["seed"] == 0)]
    assert own.set_index("part").loc[name, "late"] == pytest.approx(row)
    parts = conclusion.table[conclusion.table["data"] == "digits"]["part"]
    assert len(parts) == 1 + 6  # three layers' weights and biases
    # The layers' Gramians add up to the whole one.
    total = sum(torch.from_numpy(m) for m in run.layer_matrices(step).values())
    whole = 1 - float(total[0, 1] / (total[0, 0] * total[1, 1]).sqrt())
    assert run.scalars["distance_mean"].iloc[step] == pytest.approx(whole, abs=1e-5)


def test_the_map_averages_over_the_seeds(study):
    _, measured, _ = study
    part = measured.curves[measured.curves["part"] != "whole model"]
    assert part.groupby(["data", "part"]).size().unique().tolist() == [20]
    seeds = [
        layer_distances(load_run(measured.folder / f"digits-averaging-seed{seed}"))
        for seed in (0, 1)
    ]
    for row in part[part["data"] == "digits"].head(8).to_dict("records"):
        own = [
            s[(s["step"] == row["step"]) & (s["part"] == row["part"])]["distance"].iloc[0]
            for s in seeds
        ]
        assert row["distance"] == pytest.approx(np.mean(own))


def test_the_verdict_and_the_figure(study):
    _, measured, conclusion = study
    assert "By parameter it ends between" in conclusion.verdict
    assert "digits, 40% label noise:" in conclusion.verdict
    figure = FIGURES["dynamics"](conclusion.table, measured.curves)["dynamics"]
    assert len(figure.axes) == 2 * 3 + 2  # with a colour bar each


TRANSFORMER = {"dim": "8", "depth": "1", "heads": "2"}


@pytest.mark.parametrize(
    ("model", "options", "part"),
    [
        ("cnn", {"width": "4"}, "bias"),
        ("resnet18", {"width": "4", "stem": "cifar"}, "conv"),
        ("vit", TRANSFORMER, "positions"),
        ("gpt", TRANSFORMER, "positions.weight"),
    ],
)
def test_any_network(tmp_path, model, options, part):
    train = {"model": model, "model_options": options, "steps": 20, "microbatch_size": 4}
    if model == "gpt":
        train |= {"data": "text", "data_options": {"context": "8", "size": "6000"}}
    settings = small(tmp_path, noises=(0.0, 0.4), seeds=1, train=train)
    measured = ANALYSIS.measure(settings)
    assert len(measured.runs) > 12
    assert measured.runs["part"].str.contains(part, regex=False).any()
    assert measured.runs["late"].between(0, 2).all()
    conclusion = ANALYSIS.conclude(settings, measured.runs, measured.curves)
    assert FIGURES["dynamics"](conclusion.table, measured.curves)["dynamics"].axes
    assert len(ANALYSIS.plan(settings)) == 2


@pytest.mark.parametrize("changes", [{"records": 19}, {"train": {"steps": 19}}])
def test_too_few_steps_for_phases(tmp_path, changes):
    with pytest.raises(UserError, match="20 phases"):
        ANALYSIS.run(small(tmp_path, **changes))


def test_a_training_without_validation(tmp_path):
    with pytest.raises(UserError, match="validate more often"):
        ANALYSIS.run(small(tmp_path, train={"validate_every": 41}))


def test_a_noise_out_of_range(tmp_path):
    with pytest.raises(UserError, match="label_noise"):
        ANALYSIS.run(small(tmp_path, noises=(1.5,)))
