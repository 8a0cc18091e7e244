"""The trainer with rules that need rows, that remember, and that calibrate themselves."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from trainer_parts import (
    LOSS,
    assert_same_scalars,
    flat,
    macrobatches,
    network,
    same,
    sampler,
    snapshot,
    trainer_of,
)

from gafscope.aggregation import (
    GAF,
    AdaptiveGAF,
    Aggregate,
    ByBucket,
    ByLayer,
    CalibratedGAF,
    CoordinateMedian,
    Decision,
    DirectionGate,
    EMAGate,
    Fold,
    Mean,
    PreviousGate,
    SANDMask,
    SignAgreement,
    TrimmedMean,
    from_torchjd,
)
from gafscope.aggregation.sequential import decide
from gafscope.errors import UserError
from gafscope.gradients import GradientRows, Gramian, gramian, microbatch_gradients
from gafscope.records import load_run

K, U = 4, 8
ROW_RULES = [
    SignAgreement(0.5),
    SANDMask(0.4),
    TrimmedMean(1),
    CoordinateMedian(),
    EMAGate(GAF(0.8), tau=0.8),
    PreviousGate(0.7),
    DirectionGate(0.7),
    ByLayer(GAF(0.6)),
    ByBucket(GAF(0.6), bytes=200),
]
STATEFUL = [
    EMAGate(tau=0.6),
    PreviousGate(0.8),
    DirectionGate(0.8),
    AdaptiveGAF(0.5),
    CalibratedGAF(0.3, every=7, calibration_rows=8),
    EMAGate(PreviousGate(0.9)),
]


def name_of(rule: object) -> str:
    return repr(rule)


@dataclass
class Scripted:
    """Rejects at the steps named, else averages the first two rows; notes what it is asked."""

    reject: set[int]
    omit: str = ""
    step: int = field(default=0, init=False)

    def aggregate(self, rows: GradientRows, gramian: Gramian, /) -> Aggregate:
        step, self.step = self.step not in self.reject, self.step + 1
        k = rows.k
        accepted = torch.arange(k) < (2 if step else 0)
        weights = accepted.double() / 2
        nothing = torch.full((k,), math.nan, dtype=torch.float64)
        decision = Decision(weights, accepted, step, nothing, torch.ones(k, dtype=torch.bool))
        update = rows.combine(weights) if step else {}
        update.pop(self.omit, None)
        return Aggregate(update, decision, {"mine": float(step)})


@pytest.mark.parametrize("rule", ROW_RULES, ids=name_of)
def test_each_step_is_the_rules_own_update(rule):
    model, own = network(), copy.deepcopy(rule)
    reference = copy.deepcopy(model)
    trainer = trainer_of(model, aggregator=rule, microbatches=K)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1, 0.9, weight_decay=1e-3, nesterov=True)
    steps = []
    for batch in macrobatches(12, K, U):
        row, _ = trainer.advance(batch)
        rows = microbatch_gradients(reference, LOSS, batch, K, engine="loop")
        expected = own.aggregate(rows, rows.gramian())
        if expected.decision.step:
            for name, parameter in reference.named_parameters():
                parameter.grad = expected.update.get(name)
            optimizer.step()
        assert row["stepped"] == expected.decision.step
        assert row["accepted"] == int(expected.decision.accepted.sum())
        for name, value in expected.scalars.items():
            assert row[name] == pytest.approx(value, nan_ok=True)
        if row["stepped"]:
            norm = math.sqrt(sum(float(g.square().sum()) for g in expected.update.values()))
            assert row["grad_norm"] == pytest.approx(norm)
        torch.testing.assert_close(flat(model), flat(reference), rtol=1e-6, atol=1e-7)
        steps.append(row["stepped"])
    assert any(steps)


@pytest.mark.parametrize("rule", ROW_RULES, ids=name_of)
def test_a_rejected_step_changes_nothing(rule):
    model = network(norm=True)
    trainer = trainer_of(model, aggregator=rule, microbatches=K)
    for batch in macrobatches(8, K, U):
        trainer.advance(batch)
    before = snapshot(trainer)
    # Not finite anywhere: no rule can step.
    inputs, labels = macrobatches(1, K, U, seed=5)[0]
    row, _ = trainer.advance((inputs * math.inf, labels))
    assert not row["stepped"]
    assert row["accepted"] == 0
    assert same(snapshot(trainer), before)


def test_a_skip_by_choice_moves_neither_momentum_nor_statistics():
    model = network(norm=True)
    trainer = trainer_of(model, aggregator=Scripted(reject={2}), microbatches=K)
    batches = macrobatches(4, K, U)
    for batch in batches[:2]:
        trainer.advance(batch)
    before = snapshot(trainer)
    assert not trainer.advance(batches[2])[0]["stepped"]
    assert same(snapshot(trainer), before)
    assert trainer.advance(batches[3])[0]["stepped"]
    assert not same(snapshot(trainer), before)


def test_a_parameter_that_is_left_out_is_not_moved_by_momentum_or_weight_decay():
    model = network()
    trainer = trainer_of(model, aggregator=Scripted(set()), microbatches=K)
    batches = macrobatches(4, K, U)
    trainer.advance(batches[0])
    trainer.aggregator.omit = "0.weight"
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    momentum = trainer.optimizer.state[model[0].weight]["momentum_buffer"].clone()
    trainer.advance(batches[1])
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.bias", "2.weight", "2.bias"}
    assert torch.equal(trainer.optimizer.state[model[0].weight]["momentum_buffer"], momentum)


@pytest.mark.parametrize("rule", [SignAgreement(0.0), ByLayer(Mean()), EMAGate(tau=2.0)])
def test_a_parameter_that_the_loss_does_not_use_stays_as_it_is(rule):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(6, 3), nn.Linear(2, 2)

        def forward(self, inputs):
            return self.used(inputs)

    torch.manual_seed(0)
    model = Partly()
    before = copy.deepcopy(model.state_dict())
    trainer = trainer_of(model, aggregator=rule, microbatches=K)
    for batch in macrobatches(3, K, U):
        assert trainer.advance(batch)[0]["stepped"]
    assert torch.equal(model.idle.weight, before["idle.weight"])
    assert not torch.equal(model.used.weight, before["used.weight"])


class Ending:
    """Gives so many macrobatches of a source and then fails."""

    def __init__(self, source, count: int):
        self.source, self.draws, self.left = source, iter(source), count
        self.state_dict, self.load_state_dict = source.state_dict, source.load_state_dict

    def __iter__(self):
        return self

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("trouble")
        return next(self.draws)


@pytest.mark.parametrize("rule", STATEFUL, ids=name_of)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(rule, tmp_path):
    def make(folder):
        model = network(norm=True, dropout=0.2)
        return trainer_of(
            model,
            aggregator=rule,
            microbatches=K,
            run_dir=folder,
            checkpoint_every=6,
            record_layers_every=5,
            warmup_updates=3,
        )

    whole = make(tmp_path / "whole")
    expected = whole.fit(sampler(K), steps=30)
    with pytest.raises(RuntimeError, match="trouble"):
        make(tmp_path / "parts").fit(Ending(sampler(K), 17), steps=30)
    second = make(tmp_path / "parts")
    found = second.fit(sampler(K), steps=30)
    assert torch.equal(flat(second.model), flat(whole.model))
    assert_same_scalars(found, expected)
    assert same(second.aggregator.state_dict(), whole.aggregator.state_dict())
    assert found.stepped.nunique() == 2 or isinstance(rule, EMAGate)


@pytest.mark.parametrize("rule", STATEFUL, ids=name_of)
def test_a_rule_may_serve_several_trainers(rule):
    runs = []
    for _ in range(2):
        trainer = trainer_of(network(), aggregator=rule, microbatches=K)
        runs.append(trainer.fit(macrobatches(12, K, U), steps=12))
    assert_same_scalars(*runs)


@pytest.mark.parametrize("every", [0, 1])
def test_a_rule_that_learns_from_its_decisions_learns_streaming_and_holding(every):
    batches = macrobatches(30, K, U)
    trainer = trainer_of(
        network(), aggregator=AdaptiveGAF(0.4), microbatches=K, record_layers_every=every
    )
    history = trainer.fit(batches, steps=30)
    model, rule = network(), AdaptiveGAF(0.4)
    reference = trainer_of(model, aggregator=Mean(), microbatches=K)
    for row, batch in zip(history.itertuples(), batches, strict=True):
        decision = rule(gramian(model, LOSS, batch, K, engine="loop"))
        assert row.tau == pytest.approx(rule.scalars()["tau"], abs=1e-5)
        assert row.accepted == int(decision.accepted.sum())
        reference.aggregator = lambda _, decision=decision: decision
        reference.advance(batch)
    assert history.tau.nunique() > 10


class Recorder:
    """Averages; wants a Gramian at even steps and keeps what it is given."""

    calibration_rows = 12
    fold = Fold(tau=2.0, keep=1.0, add=1.0, divide=True, minimum=1)

    def __init__(self):
        self.given: list[Gramian] = []
        self.asked: list[int] = []

    def __call__(self, gramian: Gramian, /) -> Decision:
        return decide(self.fold, gramian, "Recorder")

    def due(self, step: int, /) -> bool:
        self.asked.append(step)
        return step % 2 == 0

    def calibrate(self, gramian: Gramian, /) -> None:
        self.given.append(gramian)

    def scalars(self) -> Mapping[str, float]:
        return {"given": float(len(self.given))}


@pytest.mark.parametrize(("n", "norm", "rows"), [(32, False, 8), (20, False, 10), (12, True, 6)])
def test_a_calibrating_rule_is_given_the_macrobatch_in_smaller_parts(n, norm, rows):
    model, rule = network(norm=norm), Recorder()
    batches = [(inputs[:n], labels[:n]) for inputs, labels in macrobatches(4, K, U)]
    trainer = trainer_of(model, aggregator=rule, microbatches=2)
    plain = trainer_of(network(norm=norm), aggregator=Mean(), microbatches=2)
    for step, batch in enumerate(batches):
        model.train()
        expected = gramian(model, LOSS, batch, rows, layers=False)
        row, _ = trainer.advance(batch)
        plain.advance(batch)
        assert row["given"] == step // 2 + 1
        found = rule.given[-1].matrix
        assert len(found) == rows
        if step % 2 == 0 and not norm:
            # The same samples, so the same sum; other parts, as the macrobatch may be ordered.
            torch.testing.assert_close(found.sum(), expected.matrix.sum())
            assert not torch.allclose(found, expected.matrix)
    assert rule.asked == [0, 1, 2, 3]
    # The measurement leaves no trace.
    assert torch.equal(flat(trainer.model), flat(plain.model))


def test_in_the_warm_up_a_rule_neither_calibrates_nor_learns_but_has_its_columns():
    rule = Recorder()
    trainer = trainer_of(network(), aggregator=rule, microbatches=2, warmup_updates=3)
    history = trainer.fit(macrobatches(6, 2, U), steps=6)
    assert rule.asked == [3, 4, 5]
    assert history.given.tolist() == [0, 0, 0, 0, 1, 1]
    adaptive = trainer_of(network(), aggregator=AdaptiveGAF(0.5), microbatches=2, warmup_updates=4)
    assert adaptive.fit(macrobatches(6, 2, U), steps=6).tau.tolist()[:5] == [2.0] * 5


def test_a_macrobatch_that_cannot_be_cut_is_refused():
    class Few(Recorder):
        calibration_rows = 6

    trainer = trainer_of(network(), aggregator=Few(), microbatches="samples")
    inputs, labels = macrobatches(1, K, U)[0]
    with pytest.raises(UserError, match=r"Few calibrates on .* but 13 samples cannot be cut"):
        trainer.advance((inputs[:13], labels[:13]))


def test_calibrated_gaf_records_its_threshold(tmp_path):
    trainer = trainer_of(
        network(),
        aggregator=CalibratedGAF(0.2, every=5, calibration_rows=8),
        microbatches=2,
        run_dir=tmp_path / "run",
    )
    history = trainer.fit(macrobatches(12, 2, U), steps=12)
    assert history.tau.notna().all()
    assert [i for i in range(1, 12) if history.tau[i] != history.tau[i - 1]] == [5, 10]


def test_bf16_calibrates_in_bf16():
    batch = macrobatches(1, 2, U)[0]
    rules = {"bf16": Recorder(), "fp32": Recorder()}
    for precision, rule in rules.items():
        trainer = trainer_of(network(), aggregator=rule, microbatches=2, precision=precision)
        trainer.advance(batch)
    found, exact = (rules[precision].given[0].matrix for precision in ("bf16", "fp32"))
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("rule", [AdaptiveGAF(0.5), CalibratedGAF(0.3, calibration_rows=8)])
def test_rules_that_learn_also_decide_on_single_samples(rule):
    trainer = trainer_of(network(), aggregator=rule, microbatches="samples")
    history = trainer.fit(macrobatches(6, 2, U), steps=6)
    assert history.tau.notna().all()
    assert history.stepped.any()


def test_bad_settings():
    with pytest.raises(UserError, match=r"SignAgreement needs the gradients.*samples"):
        trainer_of(network(), aggregator=SignAgreement(), microbatches="samples")
    with pytest.raises(UserError, match="leaves nothing to compare"):
        trainer_of(network(), aggregator=SignAgreement(), microbatches=1)
    with pytest.raises(UserError, match="aggregator must be a rule"):
        trainer_of(network(), aggregator=SignAgreement)
    with pytest.raises(UserError, match="aggregator must be a rule"):
        trainer_of(network(), aggregator=3)
    # A gate compares with earlier steps, so one microbatch is enough.
    history = trainer_of(network(), aggregator=EMAGate(), microbatches=1).fit(
        macrobatches(4, 1, U), steps=4
    )
    assert history.suppressed.notna().all()


@pytest.mark.parametrize("name", ["MGDA", "PCGrad", "Sum"])
def test_rules_of_torchjd(name):
    theirs = getattr(pytest.importorskip("torchjd.aggregation"), name)()
    model = network()
    reference = copy.deepcopy(model)
    trainer = trainer_of(model, aggregator=from_torchjd(theirs), microbatches=K)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1, 0.9, weight_decay=1e-3, nesterov=True)
    for step, batch in enumerate(macrobatches(6, K, U)):
        rows = microbatch_gradients(reference, LOSS, batch, K, engine="loop")
        # PCGrad draws from the global generator.
        torch.manual_seed(step)
        vector = theirs(rows.flat().double())
        torch.manual_seed(step)
        assert trainer.advance(batch)[0]["stepped"]
        sizes = [p.numel() for p in reference.parameters()]
        for parameter, part in zip(reference.parameters(), vector.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).float()
        optimizer.step()
        torch.testing.assert_close(flat(model), flat(reference), rtol=1e-4, atol=1e-5)


def test_a_column_that_every_run_has_is_refused():
    class Taking(Recorder):
        def scalars(self) -> Mapping[str, Any]:
            return {"loss": 0.0}

    trainer = trainer_of(network(), aggregator=Taking(), microbatches=2)
    with pytest.raises(UserError, match="Taking records a column 'loss'"):
        trainer.advance(macrobatches(1, 2, U)[0])


def test_updates_that_do_not_fit_are_refused():
    class Wrong(Scripted):
        def aggregate(self, rows, gramian, /):
            result = super().aggregate(rows, gramian)
            return Aggregate({"0.bias": torch.zeros(3)}, result.decision)

    trainer = trainer_of(network(), aggregator=Wrong(set()), microbatches=K)
    with pytest.raises(UserError, match=r"shape \(3,\) for '0.bias', where \(16,\) fits"):
        trainer.advance(macrobatches(1, K, U)[0])


def test_the_record_holds_what_a_rule_adds(tmp_path):
    trainer = trainer_of(
        network(), aggregator=ByLayer(GAF(0.7)), microbatches=K, run_dir=tmp_path / "run"
    )
    trainer.fit(macrobatches(5, K, U), steps=5)
    run = load_run(tmp_path / "run")
    assert run.scalars[["accepted_share", "skipped_share"]].notna().all(axis=None)
    assert "ByLayer(rule=GAF(" in run.config["rule"]
