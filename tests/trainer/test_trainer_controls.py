"""Warm-up and the controls: a number of updates, another run's steps, random skips."""

from __future__ import annotations

import pytest
import torch
from trainer_parts import flat, macrobatches, network, sampler, sgd, trainer_of

from gafscope.aggregation import GAF, Mean, RandomSkip, Yoked
from gafscope.errors import UserError
from gafscope.records import load_run


def test_warm_up_averages_first_and_filters_then():
    model, plain = network(), network()
    trainer = trainer_of(model, aggregator=GAF(0.001), warmup_updates=5)
    history = trainer.fit(macrobatches(20, 2), steps=20)
    assert history["stepped"].tolist() == [True] * 5 + [False] * 15
    assert history["accepted"].tolist() == [2] * 5 + [0] * 15
    trainer_of(plain, aggregator=Mean()).fit(macrobatches(20, 2), steps=5)
    assert torch.equal(flat(model), flat(plain))


def test_warm_up_counts_updates_not_steps():
    skip = RandomSkip(0.5, seed=1)
    trainer = trainer_of(network(), aggregator=GAF(0.0), gate=skip, warmup_updates=5)
    history = trainer.fit(macrobatches(40, 2), steps=40)
    opened = [skip.opens(step) for step in range(40)]
    fifth = [step for step in range(40) if opened[step]][4]
    assert history["stepped"].tolist() == [o and s <= fifth for s, o in enumerate(opened)]
    assert trainer.updates == 5


def test_max_updates_ends_the_run(tmp_path):
    trainer = trainer_of(network(), aggregator=GAF(0.8), max_updates=7, run_dir=tmp_path / "r")
    history = trainer.fit(macrobatches(50, 2), steps=50)
    assert trainer.status == "all updates made"
    assert history["stepped"].sum() == 7
    assert bool(history["stepped"].iloc[-1])
    assert 7 < len(history) < 50
    summary = load_run(tmp_path / "r").summary
    assert summary == {"status": "all updates made", "steps": len(history), "updates": 7}


def test_a_run_that_made_all_its_updates_is_not_prolonged(tmp_path):
    for steps in (50, 100):
        model = network()
        trainer = trainer_of(model, aggregator=Mean(), max_updates=7, run_dir=tmp_path / "r")
        assert len(trainer.fit(macrobatches(50, 2), steps)) == 7
    reference = network()
    trainer_of(reference, aggregator=Mean()).fit(macrobatches(50, 2), steps=7)
    assert torch.equal(flat(model), flat(reference))


def test_yoked_steps_exactly_when_the_other_run_did():
    other = trainer_of(network(), aggregator=GAF(0.8)).fit(sampler(2), steps=60)["stepped"]
    assert 0 < other.sum() < 60
    model = network()
    trainer = trainer_of(model, aggregator=Mean(), gate=Yoked(other))
    history = trainer.fit(sampler(2, seed=8), steps=60)
    assert history["stepped"].tolist() == other.tolist()
    assert trainer.updates == other.sum()
    # A gate decides on the update alone: what the rule accepted is recorded all the same.
    assert history["accepted"].tolist() == [2] * 60
    # And those steps are plain averaging on the fresh microbatches.
    reference, fresh = network(), sampler(2, seed=8)
    optimizer = sgd(reference)
    for stepped in other:
        inputs, targets = next(fresh)
        if stepped:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(reference(inputs), targets).backward()
            optimizer.step()
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-4, atol=1e-6)


def test_yoked_to_a_shorter_run_ends_with_an_error():
    trainer = trainer_of(network(), aggregator=Mean(), gate=Yoked([True, False]))
    with pytest.raises(UserError, match="has 2 steps"):
        trainer.fit(macrobatches(5, 2), steps=5)


def test_a_gate_is_asked_only_when_the_rule_would_step():
    asked = []

    class Gate:
        def opens(self, step: int) -> bool:
            asked.append(step)
            return True

    trainer = trainer_of(network(), aggregator=GAF(0.8), gate=Gate())
    history = trainer.fit(macrobatches(40, 2), steps=40)
    assert asked == history.index[history["stepped"]].tolist()
    assert 0 < len(asked) < 40


def test_random_skip_skips_its_share_and_the_same_steps_every_time():
    def run(seed: int):
        trainer = trainer_of(network(), aggregator=Mean(), gate=RandomSkip(0.7, seed))
        return trainer.fit(macrobatches(20, 2), steps=300)["stepped"]

    stepped = run(3)
    assert 0.22 < stepped.mean() < 0.38
    assert stepped.equals(run(3))
    assert not stepped.equals(run(4))


def test_gates_that_differ_make_another_run(tmp_path):
    def fit(gate):
        trainer = trainer_of(network(), aggregator=Mean(), gate=gate, run_dir=tmp_path / "r")
        return trainer.fit(macrobatches(5, 2), steps=5)

    fit(Yoked([True] * 200))
    fit(Yoked([True] * 200))
    with pytest.raises(UserError, match="'gate'"):
        fit(Yoked([True] * 199 + [False]))
    with pytest.raises(UserError, match="'gate'"):
        fit(RandomSkip(0.5))
