"""Rows that ranks exchange as shards against the same rows in one process."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from rank_jobs import run_ranks

from gafscope.aggregation import (
    GAF,
    ByBucket,
    ByLayer,
    CoordinateMedian,
    EMAGate,
    HalvingGAF,
    Mean,
    SANDMask,
    SignAgreement,
    SoftGAF,
    TrimmedMean,
    aggregate,
)
from gafscope.distributed import (
    ShardExchange,
    check_order,
    check_shardable,
    decide_on_shards,
    sum_over_ranks,
    visiting_order,
    wants_layers,
)
from gafscope.errors import UserError
from gafscope.gradients import GradientRows, Gramian
from gafscope.gradients.running import RunningVector

SHAPES = {"a": (3, 5), "b": (7,), "c": (), "unused": (2, 2), "d": (4, 3, 2)}
RULES = [
    Mean(),
    GAF(tau=0.9),
    GAF(tau=0.9, anchor="best"),
    HalvingGAF(tau=0.95),
    SoftGAF(),
    SignAgreement(share=0.5),
    TrimmedMean(),
    CoordinateMedian(),
    ByLayer(GAF(tau=0.9)),
    ByBucket(GAF(tau=0.9), bytes=60),
]


def row(index, dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 + index)
    common = torch.Generator().manual_seed(7)
    return {
        name: (
            torch.randn(shape, generator=common) * 0.7 + torch.randn(shape, generator=generator)
        ).to(dtype)
        for name, shape in SHAPES.items()
    }


def held(k):
    rows = [row(i) for i in range(k)]
    return GradientRows({name: torch.stack([r[name] for r in rows]) for name in SHAPES})


def share(rank, m, dtype=None, bad=()):
    parameters = {name: torch.empty(shape) for name, shape in SHAPES.items()}
    exchange = ShardExchange(parameters, dtype=dtype)
    own = []
    for j in range(m):
        index = rank * m + j
        gradient = list(row(index).values())
        gradient[3] = None
        own.append([] if index in bad else gradient)
    return parameters, exchange.share(own), own


def agree(rank, ranks, rules, m, kind, dtype, group_size):
    found = []
    for rule in rules:
        parameters, shards, _ = share(rank, m, dtype)
        shards = shards.averaged(group_size)
        matrix, layers = shards.partial_gramian(wants_layers(rule))
        matrix, *summed = sum_over_ranks(matrix, *layers.values())
        gramian = Gramian(matrix, dict(zip(layers, summed, strict=True)))
        order = visiting_order(kind, shards.k, seed=3, step=1)
        agreed = decide_on_shards(rule, [shards], gramian, parameters, order, None)
        decision = agreed.decision
        update = []
        if agreed.updates is not None:
            update = shards.gather(agreed.updates[0], decision.accepted)
        found.append((matrix, decision, update, agreed.left_out, dict(agreed.scalars)))
    return found


def alone(rule, k, kind="rank"):
    """The reference: all rows in one process, put into the order of the visits by hand."""
    rows = held(k)
    rows.named["unused"].zero_()
    order = visiting_order(kind, k, seed=3, step=1)
    visited = GradientRows({name: values[order] for name, values in rows.named.items()})
    result = aggregate(rule, visited, visited.gramian())
    back = sorted(range(k), key=order.__getitem__)
    return rows.gramian().matrix, result, result.decision.weights[back], visited


def check_same_bits(first, second):
    for (matrix, decision, update, *rest), (matrix2, decision2, update2, *rest2) in zip(
        first, second, strict=True
    ):
        assert torch.equal(matrix, matrix2)
        assert torch.equal(decision.weights, decision2.weights)
        assert torch.equal(decision.distances.nan_to_num(9), decision2.distances.nan_to_num(9))
        assert rest == rest2
        for one, other in zip(update, update2, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


@pytest.mark.parametrize(("ranks", "m", "kind"), [(2, 2, "rank"), (4, 1, "shuffle")])
def test_every_rule_decides_and_combines_as_in_one_process(ranks, m, kind):
    found = run_ranks(agree, ranks, RULES, m, kind, None, 1)
    for other in found[1:]:
        check_same_bits(found[0], other)
    for rule, (matrix, decision, update, left_out, scalars) in zip(RULES, found[0], strict=True):
        expected, result, weights, _ = alone(rule, ranks * m, kind)
        assert torch.allclose(matrix, expected, rtol=1e-12, atol=1e-12)
        assert decision.step == result.decision.step, rule
        assert torch.allclose(decision.weights, weights, rtol=1e-9), rule
        assert scalars == pytest.approx(dict(result.scalars) if scalars else {}), rule
        assert update, "these settings are to accept something"
        for name, tensor in zip(SHAPES, update, strict=True):
            if name == "unused":
                assert tensor is None
            elif name in result.update:
                assert torch.allclose(tensor, result.update[name], rtol=1e-5, atol=1e-6), rule
            else:
                assert name in left_out


def test_the_update_of_a_sequential_rule_is_that_of_one_process_to_the_bit():
    (_, decision, update, *_), *_ = run_ranks(agree, 2, [HalvingGAF(tau=0.95)], 2, "rank", None, 1)[
        0
    ]
    running, fold = RunningVector(), HalvingGAF(tau=0.95).fold
    for i in decision.accepted.nonzero().flatten().tolist():
        gradient = list(row(i).values())
        running.fold(gradient, fold.keep, fold.add if running.tensors else 1.0)
    assert int(decision.accepted.sum()) > 2
    for j, tensor in enumerate(update):
        assert tensor is None or torch.equal(tensor, running.tensors[j])


def not_finite(rank, ranks):
    _, shards, own = share(rank, 2, bad=(1,))
    (matrix,) = sum_over_ranks(shards.partial_gramian(False)[0])
    decision = Mean()(Gramian(matrix))
    update = shards.gather(shards.combine(decision), decision.accepted)
    return matrix, update, [len(gradient) for gradient in own]


def test_a_row_that_is_not_finite_is_left_out_on_every_rank():
    for matrix, update, left in run_ranks(not_finite, 2):
        expected = held(4)
        expected.named["unused"].zero_()
        gramian = expected.gramian().matrix
        gramian[1], gramian[:, 1] = math.nan, math.nan
        assert torch.allclose(matrix, gramian, rtol=1e-12, equal_nan=True)
        mean = expected.named["a"][[0, 2, 3]].mean(0)
        assert torch.allclose(update[0], mean, rtol=1e-5, atol=1e-6)
        assert left == [0, 0], "rows are handed over, so that they take up no memory"


def test_rows_in_bfloat16_are_summed_in_float32_and_give_float32_updates():
    for dtype in (torch.bfloat16, torch.float16):
        ((matrix, _, update, *_),) = run_ranks(agree, 2, [Mean()], 2, "rank", dtype, 1)[0]
        assert update[0].dtype == torch.float32
        rows = [row(i, dtype) for i in range(4)]
        flat = torch.stack(
            [torch.cat([r[n].reshape(-1) for n in SHAPES if n != "unused"]) for r in rows]
        ).double()
        assert torch.allclose(matrix, flat @ flat.T, rtol=1e-12)
        mean = torch.stack([r["a"].float() for r in rows]).mean(0)
        assert torch.allclose(update[0], mean, rtol=1e-2, atol=1e-2)


def test_groups_of_ranks_are_averaged_before_the_rule_sees_them():
    found = run_ranks(agree, 4, [GAF(tau=2.0)], 1, "rank", None, 2)[0]
    matrix, decision, update, *_ = found[0]
    rows = held(4)
    rows.named["unused"].zero_()
    pairs = GradientRows({n: v.view(2, 2, *v.shape[1:]).mean(1) for n, v in rows.named.items()})
    assert torch.allclose(matrix, pairs.gramian().matrix, rtol=1e-6)
    assert decision.weights.tolist() == [0.5, 0.5]
    assert torch.allclose(update[0], rows.named["a"].mean(0), atol=1e-6)


def more_ranks_than_numbers(rank, ranks):
    exchange = ShardExchange({"w": torch.empty(2), "v": torch.empty(())})
    shards = exchange.share(
        [[torch.tensor([rank + 1.0, 0.0]), None if rank else torch.tensor(3.0)]]
    )
    (matrix,) = sum_over_ranks(shards.partial_gramian(True)[0])
    decision = Mean()(Gramian(matrix))
    # The second exchange writes where the first one's update lies.
    update = [part.clone() for part in shards.gather(shards.combine(decision), decision.accepted)]
    parameters = {"w": torch.empty(2), "v": torch.empty(())}
    shards = exchange.share([[torch.tensor([1.0, -1.0 - rank]), torch.tensor(1.0)]])
    agreed = decide_on_shards(
        SignAgreement(), [shards], Gramian(matrix), parameters, [0, 1, 2, 3], None
    )
    return matrix, update, shards.gather(agreed.updates[0], agreed.decision.accepted)


def test_ranks_without_a_number_of_their_own_take_part():
    for matrix, update, signs in run_ranks(more_ranks_than_numbers, 4):
        rows = torch.tensor([[1.0, 0, 3], [2, 0, 0], [3, 0, 0], [4, 0, 0]]).double()
        assert torch.equal(matrix, rows @ rows.T)
        assert update[0].tolist() == [2.5, 0.0]
        assert update[1].item() == 0.75
        assert signs[0].tolist() == [1.0, -2.5]


def nothing_kept(rank, ranks, apart):
    exchange = ShardExchange({"w": torch.empty(2), "v": torch.empty(2)})
    sign = 1.0 if rank else -1.0
    v = torch.tensor([sign, sign]) if apart else torch.tensor([1.0, sign])
    shards = exchange.share([[torch.tensor([sign, -sign]), v]])
    (matrix,) = sum_over_ranks(shards.partial_gramian(False)[0])
    parameters = {"w": torch.empty(2), "v": torch.empty(2)}
    agreed = decide_on_shards(SignAgreement(), [shards], Gramian(matrix), parameters, [0, 1], None)
    return agreed.decision.step, agreed.scalars["kept"], agreed.updates


def test_a_coordinatewise_step_counts_what_all_ranks_kept():
    found = run_ranks(nothing_kept, 2, False)
    assert [(step, kept) for step, kept, _ in found] == [(True, 0.25)] * 2
    assert [update[0].tolist() for *_, update in found] == [[0.0, 0.0], [1.0, 0.0]]
    assert run_ranks(nothing_kept, 2, True) == [(False, 0.0, None)] * 2


def counted_bytes(rank, ranks, numbers, m):
    sent = {"out": 0, "sums": 0}
    to_all, broadcast, reduce = dist.all_to_all_single, dist.broadcast, dist.all_reduce

    def count_to_all(output, given, **options):
        own = options["input_split_sizes"][rank]
        sent["out"] += (given.numel() - own) * given.element_size()
        return to_all(output, given, **options)

    def count_broadcast(tensor, **options):
        if options["group_src"] == rank:
            sent["out"] += tensor.numel() * tensor.element_size() * (ranks - 1)
        return broadcast(tensor, **options)

    def count_reduce(tensor, **options):
        sent["sums"] += tensor.numel()
        return reduce(tensor, **options)

    dist.all_to_all_single, dist.all_reduce = count_to_all, count_reduce
    dist.broadcast = count_broadcast
    parameters = {"w": torch.empty(numbers)}
    rows = [[torch.full((numbers,), float(rank + 1))] for _ in range(m)]
    shards = ShardExchange(parameters).share(rows)
    (matrix,) = sum_over_ranks(shards.partial_gramian(False)[0])
    decision = Mean()(Gramian(matrix))
    shards.gather(shards.combine(decision), decision.accepted)
    return sent


@pytest.mark.parametrize(("ranks", "m"), [(2, 1), (4, 1), (2, 3)])
def test_a_step_moves_what_one_plain_all_reduce_moves(ranks, m):
    numbers = 100_003
    plain = 2 * 4 * numbers * (ranks - 1) / ranks
    for sent in run_ranks(counted_bytes, ranks, numbers, m):
        assert sent["out"] <= 1.001 * (m + 1) / 2 * plain
        assert sent["sums"] == (ranks * m) ** 2


def test_orders_are_permutations_that_change_with_the_step():
    assert visiting_order("rank", 4, seed=1, step=9) == [0, 1, 2, 3]
    assert visiting_order("rotate", 4, seed=1, step=1) == [2, 3, 0, 1]
    drawn = [visiting_order("shuffle", 6, seed=1, step=step) for step in range(20)]
    assert all(sorted(order) == list(range(6)) for order in drawn)
    assert len({tuple(order) for order in drawn}) > 15
    assert drawn[3] == visiting_order("shuffle", 6, seed=1, step=3)
    assert drawn[3] != visiting_order("shuffle", 6, seed=2, step=3)


def test_what_cannot_work_on_shards_is_refused():
    for rule in (EMAGate(), SANDMask()):
        with pytest.raises(UserError, match=f"{type(rule).__name__} needs whole gradients"):
            check_shardable(rule)
    with pytest.raises(UserError, match="rule must be a rule"):
        check_shardable(GAF)
    with pytest.raises(UserError, match="Did you mean 'shuffle'"):
        check_order("shufle")
    with pytest.raises(UserError, match="no process group"):
        ShardExchange({"w": torch.empty(2)})
    for rule in RULES:
        check_shardable(rule)


def single(rank, ranks):
    try:
        ShardExchange({"w": torch.empty(2)})
    except UserError as error:
        return str(error)


def test_one_rank_is_told_that_it_is_alone():
    assert "start at least 2" in run_ranks(single, 1)[0]
