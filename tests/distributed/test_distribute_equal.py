"""Ranks that agree against one process that sees all rows: the same sets, the same weights."""

from __future__ import annotations

import pytest
import torch
from distributed_loops import LOSS, macrobatches, network, sgd, train_alone, train_on_ranks
from rank_jobs import run_ranks

import gafscope as gs
from gafscope.gradients import Gramian

STEPS = 200


def calibrated():
    rows = torch.randn(32, 40, generator=torch.Generator().manual_seed(0)).double()
    rule = gs.CalibratedGAF(false_accept=0.3)
    rule.calibrate(Gramian(rows @ rows.T))
    return rule


RULES = {
    "gaf": gs.GAF(tau=0.8),
    "best": gs.GAF(tau=0.8, anchor="best"),
    "soft": gs.SoftGAF(),
    "calibrated": calibrated(),
}


def train_all(rank, ranks, names, kind, m, steps):
    return {name: train_on_ranks(rank, ranks, RULES[name], steps, m, kind)[:2] for name in names}


def check_close(state, expected):
    for name, tensor in expected.items():
        error = (state[name] - tensor).norm() / tensor.norm().clamp(min=1e-3)
        assert error < 1e-6, (name, float(error))


def check_against_one_process(ranks, kind, m, names, steps=STEPS):
    found = run_ranks(train_all, ranks, names, kind, m, steps)
    for name in names:
        accepted, state = found[0][name]
        for other, other_state in (one[name] for one in found[1:]):
            assert torch.equal(other, accepted)
            assert all(torch.equal(other_state[key], state[key]) for key in state)
        expected, expected_state = train_alone(RULES[name], ranks * m, steps)
        assert torch.equal(accepted, expected), name
        assert float(accepted.double().mean()) > 0.02, "some rows are to be accepted"
        if name != "soft":
            assert float(accepted.double().mean()) < 0.98, "and some rejected"
        check_close(state, expected_state)


@pytest.mark.parametrize(
    ("ranks", "kind", "m", "names", "steps"),
    [
        (2, "ddp", 1, tuple(RULES), STEPS),
        (4, "ddp", 1, ("gaf",), STEPS),
        (2, "fsdp", 1, ("best",), STEPS),
        (2, "ddp", 2, ("soft",), 50),
        (2, "fsdp", 2, ("calibrated",), 50),
    ],
)
def test_ranks_decide_and_train_as_one_process_does(ranks, kind, m, names, steps):
    check_against_one_process(ranks, kind, m, names, steps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_every_rule_trains_many_ranks_as_one_process(ranks, kind):
    check_against_one_process(ranks, kind, 1, tuple(RULES))


def gaf(rank, ranks):
    return train_on_ranks(rank, ranks, gs.GAF(tau=0.8), STEPS)[:2]


def test_ranks_train_as_the_trainer_does():
    accepted, state = run_ranks(gaf, 2)[0]
    model = network()
    trainer = gs.Trainer(
        model,
        gs.supervised(LOSS.__class__(reduction="none")),
        sgd(model),
        gs.GAF(tau=0.8),
        progress=False,
        record_layers_every=0,
    )
    history = trainer.fit(macrobatches(STEPS, 2), steps=STEPS)
    assert history.accepted.tolist() == accepted.sum(1).tolist()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), "elementwise the same operations"
