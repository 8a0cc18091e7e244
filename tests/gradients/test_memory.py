"""Within limited memory: blocks of rows, smaller chunks when memory runs out, other engines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradient_cases import batch, loss, make
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.gradients import gramian, microbatch_gradients
from gafscope.gradients.budget import _saved_bytes, ghost_plan
from gafscope.gradients.isolation import untouched
from gafscope.gradients.problem import make_problem
from gafscope.gradients.weighted import weighted_gradient
from gafscope.models import mlp

U = 3
# The ghost engine looks at so many samples at once before anything else.
LOOK = 3


class _Gate(torch.autograd.Function):
    """Hands a batch on and tells how many samples it has, also those that vmap hides."""

    @staticmethod
    def forward(batch: Tensor, tell: Callable[[int], None]) -> Tensor:
        tell(len(batch))
        return batch.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None

    @staticmethod
    def vmap(info: Any, in_dims: Any, batch: Tensor, tell: Callable[[int], None]) -> Any:
        batch = batch.movedim(in_dims[0], 0)
        tell(batch.shape[:2].numel())
        return batch.clone(), 0


class Limited:
    """A loss that runs out of memory with more samples than fit, and counts what it sees."""

    def __init__(self, fits: int = 10**9, error: Exception | None = None):
        self.fits, self.error = fits, error
        self.seen: list[int] = []

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return loss(model, (_Gate.apply(batch[0], self.tell), batch[1]))

    def tell(self, samples: int) -> None:
        self.seen.append(samples)
        if samples > self.fits:
            raise self.error or torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2 GiB"
            )


ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 400000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError(),
}


def problem_of(name: str, k: int, u: int = U):
    """A model, its batch and the measurement with a loss that copies the batch, as `Limited`."""
    model, data = make(name, torch.float64), batch(name, k * u, torch.float64)
    return model, data, make_problem(model, Limited(), data, k, seed=0)


def budget_for(problem: Any, capacity: int) -> int:
    """Bytes in which the ghost engine takes so many microbatches at once."""
    with untouched(problem.model):
        budget = int(1.5 * (capacity + 0.5) * _saved_bytes(problem))
        assert ghost_plan(problem, budget).chunk == min(capacity, problem.k)
    return budget


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean((1, 2))


def thin(*between: nn.Module) -> tuple[nn.Module, Tensor]:
    """A model with activations of many numbers and few parameters, and a batch of 9 samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 3, 1), *between, nn.Conv1d(3, 1, 1)).double()
    return model, torch.randn(9, 1, 400, dtype=torch.float64)


def state_of(model: nn.Module) -> tuple[Any, ...]:
    return (
        copy.deepcopy(model.state_dict()),
        [(p.grad, p.requires_grad) for p in model.parameters()],
        [(m.training, len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()],
        torch.get_rng_state(),
    )


def assert_as_found(model: nn.Module, before: tuple[Any, ...]) -> None:
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("engine", "name"), [("ghost", "cnn-group"), ("auto", "mlp")])
@pytest.mark.parametrize("k", range(5, 10))
@pytest.mark.parametrize("capacity", [2, 3, 4, 7])
def test_blocks_give_the_same_gramian_and_never_more_at_once(engine, name, k, capacity):
    model, data, problem = problem_of(name, k)
    whole, limited = gramian(model, loss, data, k, engine="ghost"), Limited()
    budget, before = budget_for(problem, capacity), state_of(model)
    found = gramian(model, limited, data, k, engine=engine, memory_budget=budget)
    assert (found.engine, found.notes) == ("ghost", ())
    assert max(limited.seen) <= min(capacity, k) * U
    for layer in (None, *whole.layers):
        error = (found.of(layer) - whole.of(layer)).abs().max()
        assert error <= 1e-12 * whole.of(layer).abs().max()
    assert torch.equal(found.matrix, found.matrix.T)
    assert_as_found(model, before)


@pytest.mark.parametrize("k", range(5, 10))
@pytest.mark.parametrize("capacity", [2, 3, 4, 6])
def test_blocks_give_the_same_weighted_gradient(k, capacity):
    u = 1 + capacity % 2
    model, data, problem = problem_of("mlp", k, u)
    budget = budget_for(problem, capacity)
    generator = torch.Generator().manual_seed(0)
    limited = Limited()
    for zeros in (0, 2, k):
        weights = torch.rand(k, dtype=torch.float64, generator=generator)
        weights[torch.randperm(k, generator=generator)[:zeros]] = 0
        whole = weighted_gradient(model, loss, data, lambda _, w=weights: w, k, engine="loop")
        found = weighted_gradient(
            model, limited, data, lambda _, w=weights: w, k, engine="ghost", memory_budget=budget
        )
        assert max(limited.seen) <= max(capacity * u, LOOK)
        assert found.gramian.engine == "ghost"
        torch.testing.assert_close(found.losses, whole.losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            found.gramian.matrix, whole.gramian.matrix, rtol=1e-12, atol=1e-14
        )
        assert list(found.named) == list(whole.named)
        for name, gradient in whole.named.items():
            torch.testing.assert_close(found.named[name], gradient, rtol=1e-12, atol=1e-14)


def test_a_larger_budget_needs_fewer_passes():
    model, data, problem = problem_of("mlp", 8)
    samples = []
    for capacity in (2, 4, 8):
        limited = Limited()
        budget = budget_for(problem, capacity)
        for _ in range(2):
            limited.seen.clear()
            gramian(model, limited, data, 8, engine="ghost", memory_budget=budget)
        samples.append(sum(limited.seen))
    # All pairs of 8 blocks, of 4, one pass; and the microbatch on which the budget is worked out.
    assert samples == [U * (28 * 2 + 1), U * (6 * 4 + 1), U * (8 + 1)]


def test_rows_of_weight_0_are_not_computed_again_in_blocks():
    model, data, problem = problem_of("mlp", 8, 1)
    budget, weights = budget_for(problem, 4), torch.zeros(8, dtype=torch.float64)
    weights[[0, 1, 6]] = 0.25
    limited, counts = Limited(), []
    for weigh in (lambda _: weights, lambda _: weights, lambda _: None):
        limited.seen.clear()
        weighted_gradient(model, limited, data, weigh, engine="ghost", memory_budget=budget)
        counts.append(sum(limited.seen))
    assert counts[1] - counts[2] == 3


def test_rows_that_are_not_finite_look_alike_in_blocks():
    model, data, problem = problem_of("mlp", 7, 1)
    budget = budget_for(problem, 4)
    clean = weighted_gradient(model, loss, data, lambda K: torch.ones(7).double(), engine="loop")
    for i, bad in ((0, torch.nan), (3, torch.inf), (6, torch.nan)):
        spoilt = data[0].clone(), data[1]
        spoilt[0][i] = bad
        weights = torch.ones(7, dtype=torch.float64)
        weights[i] = 0
        found = weighted_gradient(
            model, Limited(), spoilt, lambda _, w=weights: w, engine="ghost", memory_budget=budget
        )
        whole = weighted_gradient(model, loss, data, lambda _, w=weights: w, engine="loop")
        expected = clean.gramian.matrix.clone()
        expected[i] = expected[:, i] = torch.nan
        assert found.gramian.engine == "ghost"
        torch.testing.assert_close(
            found.gramian.matrix, expected, rtol=1e-10, atol=1e-14, equal_nan=True
        )
        for name, gradient in whole.named.items():
            torch.testing.assert_close(found.named[name], gradient, rtol=1e-12, atol=1e-14)


def test_a_budget_too_small_for_two_microbatches():
    model, data = thin(nn.Tanh())
    budget = budget_for(make_problem(model, squares, data, 3, seed=0), 1)
    with pytest.raises(UserError, match="two microbatches at once"):
        gramian(model, squares, data, 3, engine="ghost", memory_budget=budget)
    found = gramian(model, squares, data, 3, memory_budget=budget)
    assert found.engine == "vmap"
    assert "two microbatches at once" in found.notes[0]
    whole = gramian(model, squares, data, 3, engine="loop")
    torch.testing.assert_close(found.matrix, whole.matrix, rtol=1e-10, atol=1e-14)
    with pytest.raises(UserError, match=r"memory_budget=7 bytes is too small"):
        gramian(model, squares, data, 3, memory_budget=7)


@pytest.mark.parametrize("capacity", [2, 5, 8])
def test_a_model_with_dropout_is_not_taken_in_blocks(capacity):
    model, data = thin(nn.Dropout(0.5))
    budget = budget_for(make_problem(model, squares, data, 9, seed=0), capacity)
    before = state_of(model)
    with pytest.raises(UserError, match=r"engine='ghost'.*draws random numbers"):
        gramian(model, squares, data, engine="ghost", memory_budget=budget)
    found = gramian(model, squares, data, memory_budget=budget, seed=3)
    assert found.engine == "vmap"
    assert "ghost cannot take this model (the model draws random" in found.notes[0]
    expected = gramian(model, squares, data, memory_budget=budget, seed=3, engine="vmap")
    assert torch.equal(found.matrix, expected.matrix)
    assert gramian(model, squares, data).engine == "ghost"
    assert_as_found(model, before)


RETRIES = [("ghost", "ghost"), ("vmap", "vmap"), ("auto", "ghost")]


@pytest.mark.parametrize(("engine", "used"), RETRIES)
@pytest.mark.parametrize(
    ("kind", "fits", "at_once"),
    [("cuda", 12, 4), ("cpu", 11, 2), ("python", 12, 4), ("cuda", 6, 2), ("cpu", 24, 8)],
)
def test_when_memory_runs_out_half_the_microbatches_are_taken(engine, used, kind, fits, at_once):
    k = 8
    model, data, _ = problem_of("mlp", k)
    whole, before = gramian(model, loss, data, k, engine="loop"), state_of(model)
    limited = Limited(fits, ERRORS[kind])
    found = gramian(model, limited, data, k, engine=engine)
    assert found.engine == used
    if at_once == k:
        assert found.notes == ()
    else:
        assert found.notes == (f"memory ran out; {at_once} microbatches at once fitted.",)
    torch.testing.assert_close(found.matrix, whole.matrix, rtol=1e-10, atol=1e-14)
    assert list(found.layers) == list(whole.layers)
    assert_as_found(model, before)
    # Also for the weighted gradient, and again once the plan is known.
    weights = torch.linspace(0, 1, k, dtype=torch.float64)
    sums = [
        weighted_gradient(model, each, data, lambda _: weights, k, engine=engine).named
        for each in (loss, limited)
    ]
    for name, gradient in sums[0].items():
        torch.testing.assert_close(sums[1][name], gradient, rtol=1e-12, atol=1e-14)
    assert_as_found(model, before)


@pytest.mark.parametrize("engine", ["vmap", "auto"])
def test_rows_are_taken_in_halves_too(engine):
    model, data, _ = problem_of("mlp", 8)
    rows = microbatch_gradients(model, Limited(8), data, 8, engine=engine)
    assert rows.engine == "vmap"
    assert rows.notes == ("memory ran out; 2 microbatches at once fitted.",)
    expected = microbatch_gradients(model, loss, data, 8, engine="loop")
    torch.testing.assert_close(rows.flat(), expected.flat(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("rows", "fits"), [(7, 1), (10, 2), (10, 1), (9, 2), (16, 2)])
def test_halves_of_blocks_draw_the_same_masks_every_time(rows, fits):
    # One microbatch of weight 1: its squared norm must be the Gramian's entry.
    model, k = mlp(192, (6,), 5, dropout=0.5).double(), 11
    data = batch("mlp", k, torch.float64)
    budget = rows * make_problem(model, loss, data, k, seed=3).row_bytes
    for i in (0, 4, 7, k - 1):
        one = torch.zeros(k, dtype=torch.float64)
        one[i] = 1
        found = weighted_gradient(
            model, Limited(fits), data, lambda _, one=one: one, engine="vmap",
            memory_budget=budget, seed=3,
        )  # fmt: skip
        square = sum(float(part.square().sum()) for part in found.named.values())
        assert square == pytest.approx(float(found.gramian.matrix[i, i]), rel=1e-12)


@pytest.mark.parametrize("measure", [gramian, microbatch_gradients])
@pytest.mark.parametrize("engine", ["loop", "vmap", "ghost", "auto"])
@pytest.mark.parametrize("kind", ERRORS)
def test_what_not_even_the_loop_has_memory_for(measure, engine, kind):
    if engine == "ghost" and measure is microbatch_gradients:
        return
    model, data, _ = problem_of("mlp", 4)
    before, error = state_of(model), ERRORS[kind]
    with pytest.raises((type(error), UserError)) as raised:
        measure(model, Limited(U - 1, error), data, 4, engine=engine)
    if engine in ("loop", "auto"):
        assert raised.value is error
    assert_as_found(model, before)


def test_auto_turns_to_the_loop_where_only_single_microbatches_fit():
    model, data, _ = problem_of("mlp", 4)
    whole = gramian(model, loss, data, 4, engine="loop")
    found = gramian(model, Limited(U), data, 4)
    assert found.engine in ("vmap", "loop")
    assert any("ghost" in note for note in found.notes)
    torch.testing.assert_close(found.matrix, whole.matrix, rtol=1e-10, atol=1e-14)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    model, data, _ = problem_of("mlp", 4)
    for engine in ("loop", "vmap", "ghost"):
        limited = Limited(0, RuntimeError("mat1 and mat2 cannot be multiplied"))
        with pytest.raises((RuntimeError, UserError), match="mat1 and mat2"):
            gramian(model, limited, data, 4, engine=engine)
        assert len(limited.seen) == 1
