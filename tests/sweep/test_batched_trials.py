"""Trials that are trained together do what each of them does alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gafscope.aggregation import GAF, AdaptiveGAF, HalvingGAF, Mean
from gafscope.errors import UserError
from gafscope.geometry import gramian, mean_pairwise_distance
from gafscope.gradients import Gramian, supervised
from gafscope.records import load_run
from gafscope.sweep import can_batch, run_settings
from gafscope.sweep.batched import group, train_batched
from gafscope.sweep.batched.decide import decide
from gafscope.sweep.batched.lockstep import Lockstep
from gafscope.sweep.batched.stack import Stack
from gafscope.trainer import TrainSettings, train
from gafscope.trainer.checkpoint import load_checkpoint

BASE = TrainSettings(
    label_noise=0.4,
    model_options={"hidden": "32"},
    tau=0.75,
    steps=200,
    validate_every=50,
    threads=1,
    progress=False,
)
TRIALS = [
    BASE,
    replace(BASE, seed=1, lr=0.1, tau=0.9),
    replace(BASE, rule="mean", tau=None, label_noise=0.0, momentum=0.0),
    replace(BASE, rule="soft-gaf", tau=None, weight_decay=1e-3, sampling_seed=5),
    replace(BASE, rule="adaptive-gaf", tau=None, warmup_updates=20),
]


@pytest.fixture
def together(monkeypatch):
    """Never measure which is faster: the tests' networks are tiny."""
    monkeypatch.setattr(group, "_is_faster", lambda job, count: True)


def placed(trials, folder):
    return [replace(one, run_dir=str(folder / str(i))) for i, one in enumerate(trials)]


def assert_same_run(run, reference, weights=1e-5):
    """The same record but for rounding and time, the same accepted sets, the same weights."""
    ours, theirs = run.scalars, reference.scalars
    assert list(ours.columns) == list(theirs.columns)
    for column in ("step", "accepted", "stepped", "not_finite", "lr"):
        assert ours[column].tolist() == theirs[column].tolist(), column
    for column in set(ours.columns) - {"seconds", "distance_to_sum", "not_finite"}:
        mine, other = ours[column].astype(float), theirs[column].astype(float)
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5, err_msg=column)
    for mine, other in zip(ours["distance_to_sum"], theirs["distance_to_sum"], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)
    assert run.config == reference.config
    assert run.recorded_steps == reference.recorded_steps
    assert run.layers == reference.layers
    step = run.recorded_steps[-1]
    np.testing.assert_allclose(run.matrix(step), reference.matrix(step), rtol=1e-3, atol=1e-7)
    assert run.summary.keys() == reference.summary.keys()
    for name, value in run.summary.items():
        if isinstance(value, float):
            assert value == pytest.approx(reference.summary[name], rel=1e-3), name
        else:
            assert value == reference.summary[name], name
    mine, other = load_checkpoint(run.folder), load_checkpoint(reference.folder)
    assert mine.keys() == other.keys()
    for name, value in other["model"].items():
        assert (mine["model"][name] - value).norm() <= weights * value.norm(), name


@pytest.mark.parametrize("k", [2, 4])
def test_every_trial_ends_as_it_does_alone(k, tmp_path, together):
    trials = [replace(one, microbatches=k, microbatch_size=40 // k) for one in TRIALS]
    runs = run_settings(placed(trials, tmp_path / "together"))
    for run, settings in zip(runs, placed(trials, tmp_path / "alone"), strict=True):
        assert_same_run(run, train(settings))
    stepped = [run.scalars["stepped"].mean() for run in runs]
    assert min(stepped) < 0.9 < max(stepped)


def test_a_small_transformer_too(tmp_path, together):
    options = {"dim": "12", "depth": "1", "heads": "2"}
    base = replace(BASE, model="vit", model_options=options, steps=60, tau=0.97)
    trials = [base, replace(base, seed=1)]
    runs = run_settings(placed(trials, tmp_path / "together"))
    for run, settings in zip(runs, placed(trials, tmp_path / "alone"), strict=True):
        assert_same_run(run, train(settings), weights=1e-4)


def test_a_finished_trial_is_taken_from_its_folder(tmp_path, together):
    trials = placed([replace(one, steps=40) for one in TRIALS[:3]], tmp_path)
    first = train(trials[1])
    before = (first.folder / "scalars.jsonl").read_bytes()
    runs = run_settings(trials)
    assert (first.folder / "scalars.jsonl").read_bytes() == before
    assert [len(run.scalars) for run in runs] == [40] * 3
    # And alone it sees that there is nothing left to do.
    kept = [(run.folder / "scalars.jsonl").read_bytes() for run in runs]
    for settings, bytes_before in zip(trials, kept, strict=True):
        assert (train(settings).folder / "scalars.jsonl").read_bytes() == bytes_before


@pytest.mark.parametrize("then", ["together", "alone"])
def test_an_interrupted_group_goes_on(then, tmp_path, together, monkeypatch):
    """Interrupted while checkpoints are written: some trials stand 20 steps behind the others."""
    base = replace(BASE, steps=100, checkpoint_every=20)
    trials = [base, replace(base, seed=1), replace(base, seed=2)]
    save = Lockstep._save

    def interrupting(self):
        if self._step == 60:
            self._stack.hand_out(0)
            self._stack.hand_out_momentum(0)
            self._members[0].session.save(wait=True)
            raise KeyboardInterrupt
        save(self)

    placed_trials = placed(trials, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(Lockstep, "_save", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run_settings(placed_trials)
    stands = [load_checkpoint(tmp_path / "cut" / str(i))["step"] for i in range(3)]
    assert stands == [60, 40, 40]
    finish = run_settings if then == "together" else lambda all_: [train(one) for one in all_]
    runs = finish(placed_trials)
    for run, settings in zip(runs, placed(trials, tmp_path / "whole"), strict=True):
        assert_same_run(run, train(settings))


def test_one_that_diverges_does_not_take_the_others_along(tmp_path, together):
    base = replace(BASE, steps=60, rule="mean", tau=None)
    trials = [base, replace(base, lr=1e30), replace(base, seed=1)]
    well, diverged, also = train_batched(placed(trials, tmp_path / "together"), "test")
    assert isinstance(diverged, UserError)
    assert "diverged" in str(diverged)
    with pytest.raises(UserError, match="diverged"):
        run_settings(placed(trials, tmp_path / "together"))
    for run, settings in ((well, trials[0]), (also, trials[2])):
        alone = replace(settings, run_dir=str(tmp_path / f"alone{settings.seed}"))
        assert_same_run(run, train(alone))
    with pytest.raises(UserError) as alone:
        train(replace(trials[1], run_dir=str(tmp_path / "alone-diverged")))
    assert str(alone.value) == str(diverged)
    rows = [load_run(tmp_path / name).scalars for name in ("together/1", "alone-diverged")]
    assert rows[0]["not_finite"].tolist() == rows[1]["not_finite"].tolist()


@pytest.mark.parametrize(
    ("change", "can"),
    [
        ({}, True),
        ({"rule": "krum", "tau": None, "microbatches": 6}, True),
        ({"model_options": {"norm": "layer"}}, True),
        ({"model_options": {"norm": "batch"}}, False),
        ({"model_options": {"dropout": "0.1"}}, False),
        ({"model": "cnn", "model_options": None}, False),
        ({"rule": "sign-agreement", "tau": None}, False),
        ({"rule": "calibrated-gaf", "tau": None}, False),
        ({"microbatches": "samples"}, False),
        ({"optimizer": "adam"}, False),
        ({"scheduler": "plateau"}, False),
        ({"clip_norm": 1.0}, False),
        ({"skip_rate": 0.5}, False),
        ({"yoked_to": "elsewhere"}, False),
        ({"precision": "bf16"}, False),
        ({"rule": "no-such-rule"}, False),
    ],
)
def test_what_can_be_trained_together(change, can):
    assert can_batch(replace(BASE, **change)) is can


def test_trials_of_different_shapes_are_not_mixed(tmp_path, together):
    trials = [replace(BASE, steps=10, microbatch_size=u, seed=s) for s in (0, 1) for u in (10, 20)]
    runs = run_settings(placed(trials, tmp_path))
    assert [run.config["microbatch_size"] for run in runs] == [10, 20, 10, 20]
    assert [run.config["seed"] for run in runs] == [0, 0, 1, 1]


def random_gramians(trials, k, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(trials, k, 6, generator=generator, dtype=torch.float64) + 0.3
    rows[0, 0] = 0
    rows[1, 1] = math.nan
    rows[2] = math.nan
    rows[3] = 0
    rows[4, 1] = -rows[4, 0]  # the sum of the two is zero
    return torch.stack([gramian(part) for part in rows])


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_decisions_at_once_are_those_of_the_rules(k, seed):
    matrices = random_gramians(12, k, seed)
    rules = [GAF(0.7), Mean(), HalvingGAF(0.9), GAF(2.0), GAF(2.0), AdaptiveGAF()] * 2
    found = decide(rules, matrices, None)
    for t, rule in enumerate(rules):
        expected = (AdaptiveGAF() if isinstance(rule, AdaptiveGAF) else rule)(Gramian(matrices[t]))
        if isinstance(rule, AdaptiveGAF) and t > 6:
            continue  # it has learnt from the decision before
        decision = found.each[t]
        assert decision.step == expected.step
        for name in ("accepted", "finite"):
            assert torch.equal(getattr(decision, name), getattr(expected, name)), (t, name)
        torch.testing.assert_close(decision.weights, expected.weights, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            decision.distances, expected.distances, rtol=0, atol=1e-9, equal_nan=True
        )
        mean = mean_pairwise_distance(matrices[t])
        assert found.mean_distances[t] == pytest.approx(mean, abs=1e-9, nan_ok=True)
        rows = torch.nan_to_num(matrices[t])
        norm = math.sqrt(max(float(expected.weights @ rows @ expected.weights), 0))
        expected_norm = norm if expected.step else math.nan
        assert found.norms[t] == pytest.approx(expected_norm, abs=1e-7, nan_ok=True)


def test_updates_are_those_of_torchs_sgd_and_a_rejected_one_moves_nothing():
    torch.manual_seed(0)
    models = [nn.Linear(3, 2).double() for _ in range(3)]
    settings = [(0.1, 0.9, 0.01), (0.2, 0.0, 0.0), (0.3, 0.5, 0.1)]
    optimizers = [
        torch.optim.SGD(m.parameters(), lr, mu, weight_decay=wd, nesterov=mu > 0)
        for m, (lr, mu, wd) in zip(models, settings, strict=True)
    ]
    named = [dict(model.named_parameters()) for model in models]
    stack = Stack(named, optimizers, models[0], supervised(nn.functional.cross_entropy))
    for turn in range(4):
        rows = torch.randn(3, 2, 8, dtype=torch.float64)
        rows[1, 0] = math.nan
        weights = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.25, 0.75]], dtype=torch.float64)
        steps = torch.tensor([True, turn != 1, turn == 2])
        stack.step(rows, weights, steps, finite=False)
        for t in range(3):
            if not steps[t]:
                continue
            update = sum(w * row for w, row in zip(weights[t], rows[t], strict=True) if w > 0)
            parts = update.split([6, 2])
            for parameter, part in zip(models[t].parameters(), parts, strict=True):
                parameter.grad = part.view(parameter.shape).clone()
            optimizers[t].step()
        for t, model in enumerate(models):
            expected = torch.cat([p.detach().flatten() for p in model.parameters()])
            torch.testing.assert_close(stack.flat_TP[t], expected, rtol=1e-12, atol=1e-12)
