"""What one step of distribute leaves behind: on the loop's scale, and nothing where rejected."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from distributed_loops import (
    LOSS,
    backward,
    macrobatches,
    network,
    own_rows,
    sgd,
    train_alone,
    train_on_ranks,
    whole,
    wrap,
)
from rank_jobs import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gafscope as gs
from gafscope.aggregation import Decision

SMALL = {"wrapping": {"bucket_cap_mb": 0.001}}


def never(gramian):
    """A weighting that rejects everything."""
    none = torch.zeros(gramian.k, dtype=torch.float64)
    return Decision(none, none > 0, False, none, none == 0)


def plain_and_agreed(rank, ranks, kind, m, divided, options):
    """Train two replicas, one by the plain loop and one by GAF(tau=2); give both weights."""
    found = []
    for agreed in (False, True):
        wrapped = wrap(network(), ranks, kind, **options)
        optimizer = sgd(wrapped)
        scope = gs.distribute(wrapped, optimizer, gs.GAF(tau=2.0)) if agreed else None
        for batch in macrobatches(6, ranks * m):
            optimizer.zero_grad()
            for j, part in enumerate(own_rows(batch, rank, m)):
                backward(wrapped, part, m, j, divided, kind)
            optimizer.step()
        if scope is not None:
            scope.remove()
            for batch in macrobatches(2, ranks):  # the plain loop again
                optimizer.zero_grad()
                backward(wrapped, own_rows(batch, rank, 1)[0], 1, 0, True, kind)
                optimizer.step()
        else:
            for batch in macrobatches(2, ranks):
                optimizer.zero_grad()
                backward(wrapped, own_rows(batch, rank, 1)[0], 1, 0, True, kind)
                optimizer.step()
        found.append([whole(parameter.detach()) for parameter in wrapped.parameters()])
    return found


@pytest.mark.parametrize(
    ("ranks", "kind", "m", "divided", "options"),
    [
        (2, "ddp", 1, True, {"bucket_cap_mb": 0.001}),
        (4, "ddp", 1, True, {}),
        (2, "ddp", 3, False, {"gradient_as_bucket_view": True}),
        (2, "ddp", 1, True, {"static_graph": True, "gradient_as_bucket_view": True}),
        (2, "ddp", 2, True, {"find_unused_parameters": True}),
        (2, "fsdp", 1, True, {}),
        (2, "fsdp", 3, False, {}),
    ],
)
def test_with_tau_2_it_is_the_plain_loop(ranks, kind, m, divided, options):
    for plain, agreed in run_ranks(plain_and_agreed, ranks, kind, m, divided, options):
        for one, other in zip(plain, agreed, strict=True):
            assert torch.allclose(one, other, rtol=2e-5, atol=1e-6)


def sharded_as_a_whole(rank, ranks):
    """Only the root is sharded: FSDP reduces everything after the backward."""
    found = []
    for agreed in (False, True):
        model = fully_shard(network(), mesh=init_device_mesh("cpu", (ranks,)))
        optimizer = sgd(model)
        with gs.distribute(model, optimizer, gs.Mean()) if agreed else nullcontext():
            for batch in macrobatches(4, ranks):
                optimizer.zero_grad()
                backward(model, own_rows(batch, rank, 1)[0], 1, 0, True, "fsdp")
                norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
        found.append([norm.full_tensor(), *map(whole, model.state_dict().values())])
    return found


def test_gradients_of_a_sharded_model_are_there_before_the_step():
    for plain, agreed in run_ranks(sharded_as_a_whole, 2):
        assert float(plain[0]) > 0.1, "clipping is to do something"
        for one, other in zip(plain, agreed, strict=True):
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def rejected(rank, ranks, kind):
    model = network(norm=True)
    wrapped = wrap(model, ranks, kind)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    same = []
    first, *others = macrobatches(3, ranks)
    for i, batch in enumerate([first, *others]):
        rule = gs.Mean() if i == 0 else never
        with gs.distribute(wrapped, optimizer, rule, scheduler) as scope:
            before = copy.deepcopy(
                [snapshot(model), optimizer.state_dict(), scheduler.state_dict()]
            )
            optimizer.zero_grad(set_to_none=False)
            LOSS(wrapped(own_rows(batch, rank, 1)[0][0]), own_rows(batch, rank, 1)[0][1]).backward()
            optimizer.step()
            scheduler.step()
            after = [snapshot(model), optimizer.state_dict(), scheduler.state_dict()]
            same.append((equal(before, after), scope.decision.step))
    return same


def snapshot(model):
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(whole(one), whole(other))
    return one == other


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_rejected_step_leaves_everything_as_it_was(kind):
    for same in run_ranks(rejected, 2, kind):
        assert same == [(False, True), (True, False), (True, False)]


def normalised(rank, ranks, kind, m):
    return train_on_ranks(rank, ranks, gs.GAF(tau=0.8), 30, m, kind, norm=True)[:2]


@pytest.mark.parametrize(("kind", "m"), [("ddp", 1), ("ddp", 2), ("fsdp", 1)])
def test_running_statistics_are_those_of_all_accepted_rows(kind, m):
    found = run_ranks(normalised, 2, kind, m)
    expected, state = train_alone(gs.GAF(tau=0.8), 2 * m, 30, norm=True)
    assert 0.1 < expected.double().mean() < 0.9
    for accepted, ours in found:
        assert torch.equal(accepted, expected)
        for name, tensor in state.items():
            assert torch.allclose(ours[name], tensor, rtol=1e-5, atol=1e-6), name
            assert torch.equal(ours[name], found[0][1][name])


def not_finite(rank, ranks, kind, m):
    wrapped = wrap(network(norm=True), ranks, kind)
    optimizer = sgd(wrapped)
    decisions = []
    with gs.distribute(wrapped, optimizer, gs.GAF(tau=2.0)) as scope:
        for step, batch in enumerate(macrobatches(3, ranks * m)):
            optimizer.zero_grad()
            for j, (inputs, labels) in enumerate(own_rows(batch, rank, m)):
                if (rank, j, step) == (1, 0, 1):
                    inputs = inputs * float("nan")
                backward(wrapped, (inputs, labels), m, j, True, kind)
            optimizer.step()
            decisions.append(scope.decision)
    return decisions, snapshot(wrapped)


@pytest.mark.parametrize(("kind", "m"), [("ddp", 1), ("ddp", 2), ("fsdp", 2)])
def test_a_row_that_is_not_finite_is_rejected_on_every_rank(kind, m):
    found = run_ranks(not_finite, 3, kind, m)
    for decisions, state in found:
        wanted = [i != m for i in range(3 * m)]
        assert decisions[1].accepted.tolist() == decisions[1].finite.tolist() == wanted
        assert bool(decisions[0].accepted.all())
        assert bool(decisions[2].accepted.all())
        for name, tensor in state.items():
            assert bool(tensor.isfinite().all()), name
            name = name.removeprefix("module.")
            assert torch.equal(tensor, found[0][1].get(name, tensor))


def bucketed(rank, ranks, rule):
    wrapped = wrap(network(), ranks, "ddp", bucket_cap_mb=0.001)
    optimizer = sgd(wrapped)
    found = []
    with gs.distribute(wrapped, optimizer, rule, scope="bucket") as scope:
        for batch in macrobatches(12, ranks):
            optimizer.zero_grad()
            LOSS(wrapped(own_rows(batch, rank, 1)[0][0]), own_rows(batch, rank, 1)[0][1]).backward()
            before = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
            gradients = {name: p.grad.clone() for name, p in wrapped.named_parameters()}
            optimizer.step()
            moved = [n for n, p in wrapped.named_parameters() if not torch.equal(p, before[n])]
            empty = [n for n, g in gradients.items() if not bool(g.any())]
            found.append((sorted(moved), sorted(empty), scope.decision.step, scope.scalars))
    return found, snapshot(wrapped)


def test_parameters_of_a_rejecting_bucket_stay_as_they_are():
    found = run_ranks(bucketed, 2, gs.GAF(tau=0.8))
    assert all(
        torch.equal(a, b) for a, b in zip(found[0][1].values(), found[1][1].values(), strict=True)
    )
    everything = set(found[0][1])
    partly = 0
    for moved, empty, step, scalars in found[0][0]:
        assert set(moved) == everything - set(empty), "no momentum, no weight decay there"
        assert step == bool(moved)
        assert (0 < scalars["skipped_share"] < 1) == (0 < len(moved) < len(everything))
        partly += 0 < len(moved) < len(everything)
    assert partly, "some steps are to be taken by some buckets only"


def with_options(rank, ranks, options):
    rule = options.pop("rule", gs.GAF(tau=0.8))
    return train_on_ranks(rank, ranks, rule, 20, **options)[:2]


@pytest.mark.parametrize(
    "options",
    [
        {"order": "shuffle", "seed": 5},
        {"order": "rotate", **SMALL},
        {"group_size": 2, "m": 2},
        {"rule": gs.ByLayer(gs.GAF(tau=0.8)), **SMALL},
        {"rule": gs.SignAgreement(share=0.5), "kind": "fsdp"},
        {"rule": gs.ByLayer(gs.GAF(tau=0.8)), "kind": "fsdp"},
        {"dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_ranks_stay_equal_with_every_option(options):
    found = run_ranks(with_options, 4, options)
    rows = 2 if "group_size" in options else 4
    accepted, state = found[0]
    assert accepted.shape == (20, rows * options.get("m", 1))
    assert bool(accepted.any())
    for other, other_state in found[1:]:
        assert torch.equal(accepted, other)
        assert all(torch.equal(state[name], other_state[name]) for name in state)
