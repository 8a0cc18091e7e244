"""Replay takes the decisions that were taken live, and those that other rules would have taken."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from gafscope.aggregation import (
    GAF,
    AdaptiveGAF,
    ByLayer,
    CalibratedGAF,
    CliqueGAF,
    Decision,
    EMAGate,
    HalvingGAF,
    Mean,
    SignAgreement,
)
from gafscope.errors import UserError
from gafscope.geometry import cosine_distance, finite_rows
from gafscope.gradients import Gramian, supervised
from gafscope.records import Run, RunWriter, load_run, replay
from gafscope.trainer import Trainer

U = 6


def nearest_pair(gramian: Gramian) -> Decision:
    """A rule of the user's own: average the two finite gradients that agree most."""
    finite = finite_rows(gramian.matrix)
    distances = cosine_distance(gramian.matrix).nan_to_num(9.0) + 10 * torch.eye(gramian.k)
    pair = divmod(int(distances.argmin()), gramian.k)
    nearest = float(distances.min())
    step = nearest < 0.7
    accepted = torch.zeros(gramian.k, dtype=torch.bool)
    accepted[list(pair)] = step
    own = torch.full((gramian.k,), nearest, dtype=torch.float64)
    return Decision(accepted.double() / 2, accepted, step, own, finite)


def by_one_layer(gramian: Gramian) -> Decision:
    """A rule that looks at one layer only, where layers are known."""
    return GAF(0.8)(Gramian(gramian.of("2.weight") if gramian.layers else gramian.matrix))


def train(folder, rule, k: int, steps: int = 40, **settings) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    samples = U if k == "samples" else k * U
    inputs = torch.randn(20 * samples, 5)
    labels = torch.where(torch.rand(len(inputs)) < 0.5, inputs[:, :3].argmax(1), 0)
    # A microbatch that is not finite, and one that is all there is.
    inputs[3 * samples] = math.nan
    inputs[5 * samples : 6 * samples] = math.inf
    batches = list(zip(inputs.split(samples), labels.split(samples), strict=True))
    settings = {"record_layers_every": 1, "checkpoint_every": 9, "progress": False} | settings
    loss = supervised(nn.functional.cross_entropy)
    trainer = Trainer(model, loss, optimizer, rule, k, run_dir=folder, **settings)
    trainer.fit(batches, steps)
    return load_run(folder)


def assert_as_live(run: Run, table, steps=None) -> None:
    live = run.scalars.set_index("step").loc[table.step if steps is None else steps]
    assert live.stepped.nunique() == 2 or live.stepped.all()
    assert table.stepped.tolist() == live.stepped.tolist()
    assert table.accepted.tolist() == live.accepted.tolist()
    # Bit for bit; NaN equals NaN.
    assert repr(table.distance_to_sum.tolist()) == repr(live.distance_to_sum.tolist())
    assert table.not_finite.tolist() == live.not_finite.tolist()
    assert any(table.not_finite)


@pytest.mark.parametrize("k", [2, 8])
@pytest.mark.parametrize(
    "rule",
    [
        GAF(0.8),
        GAF(1.0),
        HalvingGAF(0.85),
        Mean(),
        CliqueGAF(0.8),
        AdaptiveGAF(0.4),
        nearest_pair,
        by_one_layer,
    ],
)
def test_replay_takes_the_live_decisions(rule, k, tmp_path):
    run = train(tmp_path / "run", rule, k)
    table = replay(run, rule)
    assert table.step.tolist() == list(range(40))
    assert_as_live(run, table)
    for weights, accepted in zip(table.weights, table.accepted, strict=True):
        assert sum(weight != 0 for weight in weights) == accepted
    if isinstance(rule, AdaptiveGAF):
        assert table.tau.tolist() == run.scalars.tau.tolist()
        assert table.tau.nunique() > 5


@pytest.mark.parametrize("rule", [GAF(0.8), HalvingGAF(0.85), AdaptiveGAF(0.5), nearest_pair])
def test_with_two_microbatches_every_streamed_step_is_there(rule, tmp_path):
    run = train(tmp_path / "run", rule, 2, record_layers_every=7)
    table = replay(run, rule)
    assert len(table) == 40
    assert_as_live(run, table)


@pytest.mark.parametrize("rule", [GAF(0.8), AdaptiveGAF(0.5)])
def test_single_samples(rule, tmp_path):
    run = train(tmp_path / "run", rule, "samples")
    assert_as_live(run, replay(run, rule))


def test_with_more_microbatches_the_steps_with_layers_are_there(tmp_path):
    run = train(tmp_path / "run", GAF(0.9), 4, record_layers_every=5)
    table = replay(run, GAF(0.9))
    assert table.step.tolist() == list(range(0, 40, 5))
    assert table.accepted.tolist() == run.scalars.accepted[::5].tolist()


def test_another_rule_decides_on_the_recorded_matrices(tmp_path):
    run = train(tmp_path / "run", GAF(0.8), 2)
    table = replay(run, GAF(0.6))
    for row in table.itertuples():
        matrix = run.matrix(row.step)
        distance = 1 - matrix[0, 1] / math.sqrt(matrix[0, 0] * matrix[1, 1])
        assert row.stepped == bool(distance <= 0.6)
        assert row.weights == ([0.5, 0.5] if row.stepped else [0.0, 0.0])
    assert 0 < table.stepped.sum() < run.scalars.stepped.sum()
    assert replay(run, Mean()).stepped.sum() > 30


def test_the_users_rule_is_left_as_it_is_and_starts_from_the_beginning(tmp_path):
    run = train(tmp_path / "run", AdaptiveGAF(0.5), 2)
    rule = AdaptiveGAF(0.5)
    for step in range(20):
        rule(Gramian(torch.from_numpy(run.matrix(step))))
    before = copy.deepcopy(rule.state_dict())
    assert_as_live(run, replay(run, rule))
    assert repr(rule.state_dict()) == repr(before)


def test_a_calibrated_rule_takes_the_recorded_threshold(tmp_path):
    rule = CalibratedGAF(0.2, every=6, calibration_rows=12)
    run = train(tmp_path / "run", rule, 4, warmup_updates=4)
    table = replay(run, rule)
    # The warm-up has no threshold.
    assert 4 <= table.step.min() <= 5
    assert_as_live(run, table)
    assert table.tau.tolist() == run.scalars.tau[table.step].tolist()
    assert table.tau.nunique() > 3
    for other in (GAF(), AdaptiveGAF()):
        another = train(tmp_path / type(other).__name__, other, 2)
        with pytest.raises(UserError, match="CalibratedGAF calibrates itself on gradients"):
            replay(another, rule)


@pytest.mark.parametrize("rule", [SignAgreement(), EMAGate(), ByLayer(GAF())])
def test_rules_that_need_rows_are_refused(rule, tmp_path):
    run = train(tmp_path / "run", GAF(0.9), 2, steps=3)
    with pytest.raises(UserError, match=f"{type(rule).__name__} needs the gradients themselves"):
        replay(run, rule)


def test_a_run_without_gramians_is_refused(tmp_path):
    run = train(tmp_path / "run", GAF(0.9), 4, steps=3, record_layers_every=0)
    with pytest.raises(UserError, match="holds no Gramians to decide on"):
        replay(run, GAF())


def test_a_rule_that_contradicts_itself_is_refused(tmp_path):
    def wrong(gramian: Gramian) -> Decision:
        decision = Mean()(gramian)
        return Decision(
            decision.weights, ~decision.accepted, True, decision.distances, decision.finite
        )

    run = train(tmp_path / "run", GAF(0.9), 2, steps=3)
    with pytest.raises(UserError, match="The decision of the rule function"):
        replay(run, wrong)


def test_decisions_equal_the_formula_on_many_steps(tmp_path):
    writer = RunWriter(tmp_path / "run", {"steps": 2_000}, seed=0, device="cpu")
    rows = np.random.default_rng(0).normal(size=(2_000, 2, 5))
    for step, row in enumerate(rows):
        writer.gramians(
            step, row @ row.T, {"a": row[:, :2] @ row[:, :2].T} if step % 9 == 0 else {}
        )
        if step % 300 == 299:
            writer.flush()
    writer.scalars({"step": 0})
    writer.close()
    table = replay(load_run(tmp_path / "run"), GAF(0.9))
    dots = (rows[:, 0] * rows[:, 1]).sum(1)
    norms = np.linalg.norm(rows, axis=2)
    assert table.stepped.tolist() == (1 - dots / norms[:, 0] / norms[:, 1] <= 0.9).tolist()
