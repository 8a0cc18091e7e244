"""Figure 2: micro-gradients of a real network in a plane."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gafscope.aggregation import GAF
from gafscope.analyses import get_analysis
from gafscope.analyses.illustration import project
from gafscope.errors import UserError
from gafscope.gradients import Gramian
from gafscope.plots.studies import FIGURES

ANALYSIS = get_analysis("illustration")


def small(folder, **changes):
    settings = ANALYSIS.presets["quick"]
    train = {"steps": 20, "run_dir": str(folder), "progress": False} | changes.pop("train", {})
    changes = {"stages": (20,), "macrobatches": 6, "seeds": 2} | changes
    return replace(settings, train=replace(settings.train, **train), **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("illustration"))
    measured = ANALYSIS.measure(settings)
    return settings, measured, ANALYSIS.conclude(settings, measured.runs, measured.curves)


def test_the_plan_is_what_is_trained(study):
    settings, measured, _ = study
    folders = [path for path in measured.folder.iterdir() if (path / "config.yaml").exists()]
    assert len(ANALYSIS.plan(settings)) == len(folders) == 2


def test_the_projection_is_that_of_the_gradients_themselves():
    rows = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).double()
    rows += torch.linspace(-1, 1, 30)
    places, kept = project(rows @ rows.T)
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    expected = rows @ directions[:2].T
    assert torch.allclose(places.abs(), expected.abs())
    assert (places.sum(0) >= 0).all()
    assert kept == pytest.approx(float(values[:2].square().sum() / values.square().sum()))


def test_two_gradients_lie_in_the_plane():
    rows = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]]).double()
    places, kept = project(rows @ rows.T)
    assert kept == pytest.approx(1)
    assert torch.allclose(places @ places.T, rows @ rows.T)


def test_decisions_are_those_of_gaf(study):
    _, measured, _ = study
    for _, part in measured.curves.groupby(["seed", "step", "example"]):
        accepted = part["accepted"].tolist()
        # The first distance that is not NaN belongs to the second micro-gradient.
        within = (part["to_sum"].iloc[1:] <= 0.97).tolist()
        assert accepted == ([True, *within] if any(within) else [False] * 4)
        assert part["stepped"].nunique() == 1


def test_examples_are_the_extremes_of_their_stage_and_seed(study):
    _, measured, conclusion = study
    runs = measured.runs
    assert len(runs) == 2 * 2 * 6  # seeds, the untrained network and one stage, macrobatches
    for _, part in runs.groupby(["seed", "step"]):
        by_example = part.set_index("example")["distance"]
        assert by_example["aligned"] == part["distance"].min()
        assert by_example["conflicting"] == part["distance"].max()
    row = conclusion.table[
        (conclusion.table["step"] == 20) & (conclusion.table["macrobatches"] == "aligned")
    ].iloc[0]
    own = runs[(runs["step"] == 20) & (runs["example"] == "aligned")]
    assert row["distance"] == pytest.approx(own["distance"].mean())
    assert row["accepted"] == pytest.approx(own["accepted"].mean())
    assert "the most conflicting" in conclusion.verdict


def test_the_mean_distance_is_that_of_the_rows(study):
    _, measured, _ = study
    part = measured.curves[
        (measured.curves["seed"] == 0)
        & (measured.curves["step"] == 20)
        & (measured.curves["example"] == "conflicting")
    ]
    # Rebuild as much of the Gramian as the plane keeps; the norms say how much that is.
    places = part[["x", "y"]].to_numpy()
    share = (places**2).sum() / (part["norm"] ** 2).sum()
    assert part["kept"].iloc[0] == pytest.approx(share)
    assert GAF(0.97)(Gramian(torch.from_numpy(places @ places.T))).accepted.shape == (4,)
    assert np.isfinite(places).all()


def test_the_figure_has_a_panel_a_stage_and_example(study):
    _, measured, conclusion = study
    figure = FIGURES["illustration"](conclusion.table, measured.curves)["illustration"]
    assert len(figure.axes) == 4
    assert "in this plane" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"microbatches": 1}}, ["microbatches", "2"]),
        ({"macrobatches": 1}, ["macrobatches", "2"]),
        ({"stages": (21,)}, ["stages", "20"]),
        ({"macrobatches": 40}, ["160 x 20"]),
    ],
)
def test_mistakes_are_told_before_the_first_training(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        ANALYSIS.run(small(tmp_path, **changes))
    for word in words:
        assert word in str(error.value)
    assert not list(tmp_path.glob("*/config.yaml"))
