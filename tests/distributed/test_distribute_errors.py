"""What distribute refuses, with one sentence on every rank, and how ranks that differ are found."""

from __future__ import annotations

import pytest
import torch
from distributed_loops import LOSS, backward, macrobatches, network, own_rows, sgd, wrap
from rank_jobs import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)

import gafscope as gs
from gafscope.distributed import check_parameters, check_same
from gafscope.distributed.agree import hashed


def message(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except gs.UserError as error:
        return str(error)
    return ""


def refusals(rank, ranks):
    wrapped = wrap(network(), ranks, "ddp")
    optimizer = sgd(wrapped)
    hooked = wrap(network(), ranks, "ddp")
    hooked.register_comm_hook(None, lambda group, bucket: None)
    together = wrap(nn.Sequential(nn.Linear(2, 2), nn.SyncBatchNorm(2)), ranks, "fsdp")
    sharded = wrap(network(), ranks, "fsdp")
    gaf = gs.GAF(tau=0.9)
    found = {
        "plain": message(gs.distribute, network(), optimizer, gaf),
        "hooked": message(gs.distribute, hooked, sgd(hooked), gaf),
        "foreign": message(gs.distribute, wrapped, sgd(network()), gaf),
        "optimizer": message(gs.distribute, wrapped, None, gaf),
        "rows": message(gs.distribute, wrapped, optimizer, gs.EMAGate()),
        "type": message(gs.distribute, wrapped, optimizer, gs.GAF),
        "calibrated": message(gs.distribute, wrapped, optimizer, gs.CalibratedGAF()),
        "scope": message(gs.distribute, wrapped, optimizer, gaf, scope="layer"),
        "bucket": message(gs.distribute, wrapped, optimizer, gs.AdaptiveGAF(), scope="bucket"),
        "order": message(gs.distribute, wrapped, optimizer, gaf, order="random"),
        "dtype": message(gs.distribute, wrapped, optimizer, gaf, dtype=torch.int8),
        "group": message(gs.distribute, wrapped, optimizer, gaf, group_size=2),
        "check": message(gs.distribute, wrapped, optimizer, gaf, check_every=0),
        "together": message(gs.distribute, together, sgd(together), gaf),
        "fsdp": message(gs.distribute, sharded, sgd(sharded), gaf, scope="bucket"),
    }
    with gs.distribute(wrapped, optimizer, gaf):
        found["twice"] = message(gs.distribute, wrapped, optimizer, gaf)
        found["idle"] = message(optimizer.step)
        found["closure"] = message(optimizer.step, lambda: torch.tensor(0.0))
        batch = own_rows(macrobatches(1, ranks)[0], rank, 1)[0]
        backward(wrapped, batch, 1, 0, True, "ddp")
        found["second"] = message(backward, wrapped, batch, 1, 0, True, "ddp")
    return found


def test_each_mistake_is_named_with_its_remedy():
    expected = {
        "plain": "wrap it in torch.nn.parallel.DistributedDataParallel",
        "hooked": "has a communication hook already",
        "foreign": "parameters that are not the model's",
        "optimizer": "needs the loop's torch optimizer",
        "rows": "EMAGate needs whole gradients",
        "type": "must be a rule",
        "calibrated": "CalibratedGAF was used before its state exists",
        "scope": "Unknown scope 'layer'",
        "bucket": "cannot hold AdaptiveGAF",
        "order": "Unknown visiting order 'random'",
        "dtype": "must be a floating type",
        "group": "at least two groups",
        "check": "check_every counts steps",
        "together": "'1' is SyncBatchNorm",
        "fsdp": "FSDP2 has no buckets",
        "twice": "agree on this model's gradients already",
        "idle": "no backward was synchronised since",
        "closure": "was given a closure",
        "second": "all but the last forward and backward",
    }
    for found in run_ranks(refusals, 2):
        for case, words in expected.items():
            assert words in found[case], (case, found[case])


def sharded_otherwise(rank, ranks):
    flat, square = (
        init_device_mesh("cpu", (4,)),
        init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards")),
    )
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    models = {
        "hybrid": fully_shard(nn.Linear(4, 4), mesh=square),
        "half": fully_shard(nn.Linear(4, 4), mesh=flat, mp_policy=half),
        "offload": fully_shard(nn.Linear(4, 4), mesh=flat, offload_policy=CPUOffloadPolicy(False)),
        "factor": fully_shard(nn.Linear(4, 4), mesh=flat),
        "first": FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu")),
    }
    models["factor"].set_gradient_divide_factor(2.0)
    return {case: message(gs.distribute, m, sgd(m), gs.GAF()) for case, m in models.items()}


def test_other_kinds_of_sharding_are_refused():
    expected = {
        "hybrid": "over a mesh of 2 dimensions",
        "half": "reduce_dtype=torch.float32",
        "offload": "CPUOffloadPolicy moves gradients away",
        "factor": "set_gradient_divide_factor would scale the rows",
        "first": "use torch.distributed.fsdp.fully_shard",
    }
    for found in run_ranks(sharded_otherwise, 4):
        for case, words in expected.items():
            assert words in found[case], (case, found[case])


def alone(rank, ranks):
    wrapped = wrap(network(), ranks, "ddp")
    return message(gs.distribute, wrapped, sgd(wrapped), gs.GAF())


def test_one_rank_is_told_that_it_is_alone():
    assert "start at least 2" in run_ranks(alone, 1)[0]


def started_differently(rank, ranks, what):
    wrapped = wrap(network(), ranks, "ddp")
    optimizer = sgd(wrapped)
    if what == "frozen" and rank == 2:
        wrapped.module[0].weight.requires_grad_(False)
    rule = gs.GAF(tau=0.9 if rank == 1 and what == "rule" else 0.8)
    return message(gs.distribute, wrapped, optimizer, rule)


def test_ranks_that_were_started_differently_all_end_with_one_explanation():
    first, *others = run_ranks(started_differently, 3, "rule")
    assert "rule is 'GAF(tau=0.8" in first
    assert "on ranks 0, 2 but 'GAF(tau=0.9" in first
    assert all("rank 0 says what differs" in other for other in others)
    first, *others = run_ranks(started_differently, 3, "frozen")
    assert "parameter '0.weight' is '(24, 12) torch.float32' on ranks 0, 1 but 'missing'" in first
    assert all("rank 0 says what differs" in other for other in others)


def one_mistaken(rank, ranks):
    wrapped = wrap(network(), ranks, "ddp")
    return message(gs.distribute, wrapped, sgd(wrapped), gs.EMAGate() if rank == 1 else gs.GAF())


def test_a_mistake_on_one_rank_ends_all():
    first, second, third = run_ranks(one_mistaken, 3)
    assert second.startswith("The rule EMAGate needs whole gradients")
    assert first == third == f"Rank 1 could not start: {second}"


def uneven(rank, ranks):
    wrapped = wrap(network(), ranks, "ddp")
    optimizer = sgd(wrapped)
    with gs.distribute(wrapped, optimizer, gs.GAF()):
        m = 2 + rank
        for j, part in enumerate(own_rows(macrobatches(1, 5)[0], 0, m)):
            if j < m - 1:
                backward(wrapped, part, m, j, True, "ddp")
        return message(backward, wrapped, part, m, m - 1, True, "ddp")


def test_ranks_with_different_numbers_of_backwards_are_told():
    for found in run_ranks(uneven, 2):
        assert "rank 0: 2, rank 1: 3" in found


def parted(rank, ranks):
    model = network()
    found = [message(check_parameters, model, 7)]
    with torch.no_grad():
        if rank == 1:
            model[3].bias[2] += 1e-7
            model[2].weight[0, 1] = -model[2].weight[0, 1]
    return [*found, message(check_parameters, model, 8)]


def test_the_first_parameter_that_parted_is_named():
    for equal, different in run_ranks(parted, 3):
        assert equal == ""
        assert "'2.weight' is the first that differs at step 8" in different
        assert "ranks 0, 2 against rank 1; 2 of 6" in different


def drifting(rank, ranks):
    wrapped = wrap(network(), ranks, "ddp")
    optimizer = sgd(wrapped)
    with gs.distribute(wrapped, optimizer, gs.Mean(), check_every=3):
        for step, batch in enumerate(macrobatches(9, ranks)):
            if step == 4 and rank == 1:
                with torch.no_grad():
                    wrapped.module[0].bias[0] += 1.0
            part = own_rows(batch, rank, 1)[0]
            optimizer.zero_grad()
            LOSS(wrapped(part[0]), part[1]).backward()
            if found := message(optimizer.step):
                return step, found
    return None


def test_replicas_are_compared_on_a_schedule():
    for step, found in run_ranks(drifting, 2):
        assert step == 6
        assert "'0.bias' is the first that differs at step 6" in found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.bool])
def test_a_hash_sees_every_change_and_every_swap(dtype):
    tensor = torch.arange(40).remainder(2).to(dtype).view(5, 8)
    first = int(hashed(tensor))
    assert first == int(hashed(tensor.clone()))
    for place in range(40):
        changed = tensor.clone()
        changed.view(-1)[place] = 1 - changed.view(-1)[place].to(torch.int8)
        assert int(hashed(changed)) != first
    swapped = tensor.clone()
    swapped[0, :2] = tensor[0, :2].flip(0)
    assert int(hashed(swapped)) != first


def compared(rank, ranks):
    equal = message(check_same, {"data": "digits", "samples": 5})
    return equal, message(check_same, {"data": "digits", "samples": rank // 2})


def test_named_values_are_compared_over_all_ranks():
    found = run_ranks(compared, 4)
    assert [equal for equal, _ in found] == [""] * 4
    assert "samples is '0' on ranks 0, 1 but '1' on ranks 2, 3" in found[0][1]
