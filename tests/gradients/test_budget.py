"""A memory budget changes how a measurement runs, not what it gives."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from gradient_cases import batch, loss, make, plain_rows, relative
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.gradients import gramian, microbatch_gradients
from gafscope.gradients.budget import plan
from gafscope.gradients.problem import make_problem
from gafscope.models import mlp

K = 12
ROW = 8 * (192 * 6 + 6 + 6 * 5 + 5)  # bytes of one row of the mlp in float64


class Counted:
    """A loss that remembers on how many microbatches it was called, and how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        return loss(model, batch)


def problem_of(name: str = "mlp", k: int = K):
    model, data = make(name, torch.float64), batch(name, 2 * K, torch.float64)
    return make_problem(model, loss, data, k, seed=0)


def smallest_budget(chunked: bool, whole: bool) -> int:
    with pytest.raises(UserError, match="needs at least") as error:
        plan(problem_of(), 1, chunked, whole)
    return int(re.findall(r"at least (\d+) bytes", str(error.value))[0])


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("name", ["mlp", "cnn-batch"])
def test_a_gramian_in_blocks_equals_the_whole_one(name, engine):
    model, data = make(name, torch.float64), batch(name, 2 * K, torch.float64)
    problem = make_problem(model, loss, data, K, seed=0)
    whole = gramian(model, loss, data, K, engine=engine)
    blocks = set()
    for rows in (4.5, 6.5, 9.3, 12.0):
        budget = int(rows * problem.row_bytes) + 40_000
        blocks.add(plan(problem, budget, engine == "vmap", False).block)
        found = gramian(model, loss, data, K, engine=engine, memory_budget=budget)
        assert found.engine == engine
        torch.testing.assert_close(found.matrix, whole.matrix, rtol=1e-10, atol=1e-14)
        assert torch.equal(found.matrix, found.matrix.T)
        assert list(found.layers) == list(whole.layers)
        for layer, matrix in whole.layers.items():
            torch.testing.assert_close(found.layers[layer], matrix, rtol=1e-10, atol=1e-14)
    assert min(blocks) < K
    assert len(blocks) > 1


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_rows_in_chunks_equal_the_whole_ones(engine):
    model, data = make("cnn-batch", torch.float64), batch("cnn-batch", 2 * K, torch.float64)
    problem = make_problem(model, loss, data, K, seed=0)
    expected = plain_rows(model, loss, data, K)
    with pytest.raises(UserError) as error:
        microbatch_gradients(model, loss, data, K, engine=engine, memory_budget=1)
    need = int(re.findall(r"at least (\d+) bytes", str(error.value))[0])
    for budget in (need, need + 3 * problem.row_bytes, 4 * need, 10**9):
        rows = microbatch_gradients(model, loss, data, K, engine=engine, memory_budget=budget)
        assert relative(rows.named, expected) < 1e-10


def test_vmap_works_in_as_many_chunks_as_it_needs():
    model, data = make("mlp", torch.float64), batch("mlp", 2 * K, torch.float64)
    counted = Counted()
    microbatch_gradients(model, counted, data, K, engine="vmap")
    assert counted.calls == 1
    for budget in (smallest_budget(True, True), 18 * ROW, 24 * ROW, 10**9):
        sizes = plan(problem_of(), budget, True, True)
        counted.calls = 0
        microbatch_gradients(model, counted, data, K, engine="vmap", memory_budget=budget)
        # One pass measures what autograd keeps; then one a chunk.
        assert counted.calls == 1 + -(-K // sizes.chunk)
    assert plan(problem_of(), smallest_budget(True, True), True, True).chunk == 1
    assert 1 < plan(problem_of(), 18 * ROW, True, True).chunk < K
    assert plan(problem_of(), 10**9, True, True).chunk == K


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("rows", [5, 7, 10])
def test_later_blocks_are_computed_again_for_each_earlier_one(engine, rows):
    model, data = make("mlp", torch.float64), batch("mlp", 2 * K, torch.float64)
    sizes = plan(problem_of(), rows * ROW, engine == "vmap", False)
    assert sizes.block < K
    counted = Counted()
    gramian(model, counted, data, K, engine=engine, memory_budget=rows * ROW)
    lengths = [min(sizes.block, K - start) for start in range(0, K, sizes.block)]
    chunks = [-(-length // sizes.chunk) for length in lengths]
    assert counted.calls == 1 + sum((i + 1) * number for i, number in enumerate(chunks))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt"])
def test_every_budget_from_the_smallest_on_is_enough_and_is_kept(name, chunked):
    problem = problem_of(name)
    with pytest.raises(UserError) as error:
        plan(problem, 1, chunked, False)
    need = int(re.findall(r"at least (\d+) bytes", str(error.value))[0])
    row = problem.row_bytes
    transient = need - 2 * row
    assert transient > row
    chunks = set()
    for step in range(200):
        budget = need + step * (K * transient + 2 * K * row) // 150
        sizes = plan(problem, budget, chunked, False)
        chunks.add(sizes.chunk)
        held = K * row if sizes.block == K else 2 * sizes.block * row
        assert held + sizes.chunk * transient <= budget
        # Chunks must end where blocks end, or a row would be drawn with another seed next time.
        assert sizes.block == K or sizes.block % sizes.chunk == 0
        assert 1 <= sizes.chunk <= sizes.block <= K
    assert (len(chunks) > 1) == chunked
    with pytest.raises(UserError):
        plan(problem, need - 1, chunked, False)


# Two microbatches' activations, which are all that the ghost engine keeps, fit into 1000 bytes.
@pytest.mark.parametrize(("engine", "budget"), [("loop", 1000), ("vmap", 1000), ("auto", 100)])
def test_a_budget_that_is_too_small_is_an_error_that_says_how_much_is_needed(engine, budget):
    model, data = make("mlp", torch.float64), batch("mlp", 2 * K, torch.float64)
    with pytest.raises(
        UserError, match=rf"memory_budget={budget} .* at least \d+ bytes; raise.*smaller"
    ):
        gramian(model, loss, data, K, engine=engine, memory_budget=budget)
    with pytest.raises(UserError, match=r"at least \d+ bytes; raise.*ask for the Gramian"):
        microbatch_gradients(model, loss, data, K, engine=engine, memory_budget=3 * ROW)
    for budget in (0, -5):
        with pytest.raises(UserError, match="too small"):
            gramian(model, loss, data, K, engine=engine, memory_budget=budget)


def test_only_what_one_microbatch_adds_counts_not_the_batch_the_weights_or_the_buffers():
    row = 4 * (10_000 * 3 + 3)

    class Linear(nn.Linear):
        def __init__(self):
            super().__init__(10_000, 3)
            self.register_buffer("scale", torch.ones(10_000))

        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.linear(input, self.weight * 1, self.bias) * self.scale[:3]

    data = torch.randn(64, 10_000)
    problem = make_problem(Linear(), lambda m, x: m(x).square().sum(1), data, 64, seed=0)
    with pytest.raises(UserError) as error:
        plan(problem, 1, True, False)
    need = int(re.findall(r"at least (\d+) bytes", str(error.value))[0])
    # Two blocks, one more row, and 1 x 3 outputs (the input belongs to the batch).
    assert 3 * row <= need < 3 * row + 10_000


def test_dropout_under_a_budget_gives_the_same_rows_with_the_loop():
    model, data = mlp(192, (6,), 5, dropout=0.5).double(), batch("mlp", 2 * K, torch.float64)
    whole = gramian(model, loss, data, K, engine="loop", seed=3)
    parts = gramian(model, loss, data, K, engine="loop", seed=3, memory_budget=6 * ROW)
    torch.testing.assert_close(parts.matrix, whole.matrix, rtol=1e-12, atol=1e-15)


def test_dropout_under_a_budget_is_consistent_with_vmap():
    # Blocks are computed several times: were a row drawn anew each time, the matrix would not
    # be one of inner products any more.
    model, data = mlp(192, (6,), 5, dropout=0.5).double(), batch("mlp", 2 * K, torch.float64)
    found = gramian(model, loss, data, K, engine="vmap", seed=3, memory_budget=6 * ROW)
    again = gramian(model, loss, data, K, engine="vmap", seed=3, memory_budget=6 * ROW)
    assert torch.equal(found.matrix, again.matrix)
    assert torch.linalg.eigvalsh(found.matrix)[0] > -1e-12 * found.matrix.trace()


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_infinite_products_are_nan_in_blocks_too(engine):
    # The gradient is the input itself, so that row 5 is infinite and its products are as well.
    model, data = nn.Linear(200, 1, bias=False), torch.rand(9, 200) + 1
    data[5] = torch.inf

    def outputs(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).squeeze(1)

    whole = gramian(model, outputs, data, engine=engine).matrix
    parts = gramian(model, outputs, data, engine=engine, memory_budget=7 * 800).matrix
    assert whole[5].isnan().all()
    assert whole[:, 5].isnan().all()
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_look_alike_in_blocks_and_in_the_whole(engine, bad):
    model, data = make("mlp", torch.float64), batch("mlp", 2 * K, torch.float64)
    data[0][7] = bad
    whole = gramian(model, loss, data, K, engine=engine).matrix
    parts = gramian(model, loss, data, K, engine=engine, memory_budget=6 * ROW).matrix
    assert whole[3].isnan().all()
    assert whole[:, 3].isnan().all()
    assert int(whole.isnan().sum()) == 2 * K - 1
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-14, equal_nan=True)
