"""Networks under attack: what is measured, what follows from it, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gafscope.analyses import get_analysis
from gafscope.analyses.attacks import FGSM, Pixels
from gafscope.errors import UserError
from gafscope.plots.studies import FIGURES
from gafscope.trainer.checkpoint import load_checkpoint
from gafscope.trainer.job import assemble

pytestmark = pytest.mark.timeout(300)
RULES = ["averaging", "GAF", "yoked control", "same updates", "random skip"]


def small(folder, **changes):
    settings = get_analysis("adversarial").presets["quick"]
    train = replace(settings.train, steps=30, validate_every=10, run_dir=str(folder))
    options = {"seeds": 2, "epsilons": (0.05, 0.5), "attack_steps": 3, "images": 40} | changes
    return replace(settings, train=replace(train, progress=False), **options)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    settings = small(tmp_path_factory.mktemp("adversarial"))
    analysis = get_analysis("adversarial")
    measured = analysis.measure(settings)
    return settings, measured, analysis.conclude(settings, measured.runs, measured.curves)


def test_every_run_is_attacked_at_both_weights(study):
    settings, measured, _ = study
    plan = get_analysis("adversarial").plan(settings)
    assert len(plan) == 5 * 2
    # Clean, and two attacks of two sizes.
    assert len(measured.runs) == len(plan) * 2 * (1 + 2 * 2)
    assert list(dict.fromkeys(measured.runs["rule"])) == RULES
    assert set(measured.runs["weights"]) == {"end", "best validation"}
    updates = measured.runs.pivot_table(index="seed", columns="rule", values="updates")
    assert (updates["yoked control"] == updates["GAF"]).all()


def test_accuracies_are_those_of_the_kept_weights(study):
    """Computed again for one run, image by image."""
    settings, measured, _ = study
    runs = measured.runs
    own = runs[(runs["rule"] == "averaging") & (runs["seed"] == 1) & (runs["weights"] == "end")]
    train = replace(settings.train, rule="mean", tau=None, seed=1)
    job = assemble(train, None)
    folder = measured.folder / "digits-40-label-noise-averaging-seed1"
    state = load_checkpoint(folder)
    assert state is not None
    model = job.trainer.model
    model.load_state_dict(state["model"])
    inputs, targets = job.dataset.validation.batch()
    attack = FGSM(0.05, Pixels.of(inputs))
    clean, right = 0, 0
    for x, y in zip(inputs[:40].split(1), targets[:40].split(1), strict=True):
        clean += int(model(x).argmax() == y)
        right += int(model(attack(model, x, y)).argmax() == y)
    assert own[own["attack"] == "clean"]["accuracy"].tolist() == [clean / 40]
    fast = own[(own["attack"] == "FGSM") & (own["epsilon"] == 0.05)]
    assert fast["accuracy"].tolist() == [right / 40]
    assert 0 < right < clean
    assert torch.isfinite(inputs).all()


def test_differences_are_paired_by_seed(study):
    _, measured, conclusion = study
    runs, table = measured.runs, conclusion.table
    keys = {"weights": "best validation", "attack": "PGD", "epsilon": 0.05}
    for name, value in keys.items():
        runs, table = runs[runs[name] == value], table[table[name] == value]
    by_rule = runs.pivot_table(index="seed", columns="rule", values="accuracy")
    rows = {row["rule"]: row for row in table.to_dict("records")}
    assert list(rows) == RULES
    for column, other in (
        ("over_averaging", "averaging"),
        ("over_yoked", "yoked control"),
        ("over_same_updates", "same updates"),
        ("over_random_skip", "random skip"),
    ):
        expected = 100 * (by_rule["GAF"] - by_rule[other]).mean()
        assert rows["GAF"][column] == pytest.approx(expected)
    late = 100 * (by_rule["yoked control"] - by_rule["averaging"]).mean()
    assert rows["yoked control"]["over_averaging"] == pytest.approx(late)
    assert rows["yoked control"]["over_yoked"] != rows["yoked control"]["over_yoked"]


def test_what_is_kept_is_a_share_of_the_clean_accuracy(study):
    _, measured, conclusion = study
    table, runs = conclusion.table, measured.runs
    assert (table[table["attack"] == "clean"]["kept"] == 1).all()
    own = runs[(runs["rule"] == "GAF") & (runs["weights"] == "end")].set_index("seed")["accuracy"]
    attacks = runs[(runs["rule"] == "GAF") & (runs["weights"] == "end")]["attack"].to_numpy()
    sizes = runs[(runs["rule"] == "GAF") & (runs["weights"] == "end")]["epsilon"].to_numpy()
    share = own[(attacks == "PGD") & (sizes == 0.05)] / own[attacks == "clean"]
    row = table[
        (table["rule"] == "GAF")
        & (table["weights"] == "end")
        & (table["attack"] == "PGD")
        & (table["epsilon"] == 0.05)
    ]
    assert row["kept"].tolist() == pytest.approx([share.mean()])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(False, "no sign of masked gradients"), (True, "gradients may be masked")],
)
def test_masked_gradients_are_told(study, spoil, words):
    settings, measured, _ = study
    runs = measured.runs.copy()
    runs.loc[runs["attack"] == "PGD", "accuracy"] = 0.0
    if spoil:
        chosen = (runs["attack"] == "PGD") & (runs["epsilon"] == 0.5) & (runs["rule"] == "GAF")
        runs.loc[chosen, "accuracy"] = 0.3
    conclusion = get_analysis("adversarial").conclude(settings, runs, measured.curves)
    assert words in conclusion.verdict
    assert ("at most 30.0%" in conclusion.verdict) == spoil


def test_the_figure_has_a_line_for_each_rule(study):
    _, measured, conclusion = study
    figure = FIGURES["adversarial"](conclusion.table, measured.curves)["adversarial"]
    end, best, beside = figure.axes
    for axes in (end, best):
        assert axes.get_legend_handles_labels()[1] == RULES
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["clean", "0.05", "0.5"]
    assert "PGD of epsilon" in beside.get_ylabel()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilons": (0.1, 1.5)}, r"epsilons.*1\.5"),
        ({"epsilons": ()}, "epsilons is empty"),
        ({"attack_steps": 0}, "attack_steps"),
        ({"images": 0}, "images"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_bad_settings_are_refused_before_the_first_training(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        get_analysis("adversarial").run(small(tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []
