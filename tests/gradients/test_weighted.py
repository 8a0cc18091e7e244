"""The weighted sum of micro-gradients against the rows added up by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from gradient_cases import batch, loss, make, plain_rows
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.gradients import Gramian, gramian
from gafscope.gradients.budget import plan
from gafscope.gradients.problem import make_problem
from gafscope.gradients.weighted import weighted_gradient
from gafscope.models import mlp

ROW_ENGINES = ["loop", "vmap"]
ENGINES = [*ROW_ENGINES, "ghost"]
N = 12
WEIGHTS = torch.tensor([0.0, 0.3, 0, 0, 0.2, 0.1, 0, 0, 0, 0, 0, 0.4], dtype=torch.float64)


def fixed(_: Gramian) -> Tensor:
    return WEIGHTS


def assert_close(named: Any, expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert list(named) == list(expected)
    for name, gradient in expected.items():
        assert named[name].shape == gradient.shape
        assert named[name].dtype == gradient.dtype
        torch.testing.assert_close(named[name], gradient, rtol=tolerance, atol=tolerance)


def weighted_rows(rows: dict[str, Tensor], weights: Tensor = WEIGHTS) -> dict[str, Tensor]:
    return {
        name: torch.einsum("k,k...->...", weights.to(row.dtype), row) for name, row in rows.items()
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mlp", "cnn-group", "gpt"])
@pytest.mark.parametrize("u", [1, 2])
def test_the_combination_the_gramian_and_the_losses(engine, name, u):
    model, data = make(name, torch.float64), batch(name, N * u, torch.float64)
    before = copy.deepcopy(model.state_dict())
    seen: list[Gramian] = []

    def weigh(gram: Gramian) -> Tensor:
        seen.append(gram)
        return WEIGHTS

    found = weighted_gradient(model, loss, data, weigh, None if u == 1 else N, engine=engine)
    assert_close(found.named, weighted_rows(plain_rows(model, loss, data, N)))
    torch.testing.assert_close(found.losses, loss(model, data).detach().view(N, u).mean(1))
    assert found.losses.dtype == torch.float64
    assert found.weights is WEIGHTS
    assert seen == [found.gramian]
    whole = gramian(model, loss, data, N, engine=engine)
    torch.testing.assert_close(found.gramian.matrix, whole.matrix, rtol=1e-12, atol=0)
    assert found.gramian.engine == engine
    assert not found.gramian.layers
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("engine", ENGINES)
def test_layers_where_they_are_asked_for(engine):
    model, data = make("mlp"), batch("mlp", N)
    found = weighted_gradient(model, loss, data, fixed, layers=True, engine=engine)
    assert list(found.gramian.layers) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_weights_no_combination(engine):
    model, data = make("mlp"), batch("mlp", N)
    found = weighted_gradient(model, loss, data, lambda _: None, engine=engine)
    assert found.weights is None
    assert found.named is None
    assert found.losses.shape == (N,)


class Counted:
    """A loss that remembers how many samples it was called for."""

    def __init__(self):
        self.samples = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        losses = loss(model, batch)
        self.samples += len(losses)
        return losses


def budget_for_blocks(model: nn.Module, data: Any, rows: float) -> int:
    problem = make_problem(model, loss, data, None, seed=0)
    return int(rows * problem.row_bytes)


@pytest.mark.parametrize("engine", ROW_ENGINES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_that_do_not_fit_are_computed_again(engine, dtype):
    model, data = make("mlp", dtype), batch("mlp", N, dtype)
    budget = budget_for_blocks(model, data, 6)
    assert plan(make_problem(model, loss, data, N, 0), budget, engine == "vmap", False).block < N
    found = weighted_gradient(model, loss, data, fixed, engine=engine, memory_budget=budget)
    whole = weighted_gradient(model, loss, data, fixed, engine=engine)
    assert_close(found.named, whole.named, 1e-12 if dtype == torch.float64 else 1e-2)
    torch.testing.assert_close(found.losses, whole.losses)
    torch.testing.assert_close(found.gramian.matrix, whole.gramian.matrix)


def test_many_small_parts_add_up_in_half_precision():
    # 64 times the same sample: in bfloat16 the later 64ths of it would be rounded away.
    model, data = make("mlp", torch.bfloat16), batch("mlp", 1, torch.bfloat16)
    one = {name: rows[0] for name, rows in plain_rows(model, loss, data, 1).items()}
    data = data[0].repeat(64, 1, 1, 1), data[1].repeat(64)
    equal = torch.full((64,), 1 / 64, dtype=torch.float64)
    budget = budget_for_blocks(model, data, 6)
    found = weighted_gradient(
        model, loss, data, lambda _: equal, engine="loop", memory_budget=budget
    )
    assert_close(found.named, one, 0)


def test_only_rows_with_a_weight_are_computed_again():
    model, data = make("mlp", torch.float64), batch("mlp", N, torch.float64)
    budget, calls = budget_for_blocks(model, data, 6), []
    for weigh in (fixed, lambda _: None):
        counted = Counted()
        weighted_gradient(model, counted, data, weigh, engine="loop", memory_budget=budget)
        calls.append(counted.samples)
    assert calls[0] - calls[1] == int((WEIGHTS != 0).sum())


@pytest.mark.parametrize("engine", ROW_ENGINES)
def test_the_second_pass_draws_the_dropout_masks_of_the_first(engine):
    # One sample of weight 1: its squared norm must be the Gramian's entry.
    model, data = mlp(192, (6,), 5, dropout=0.5).double(), batch("mlp", N, torch.float64)
    budget = budget_for_blocks(model, data, 7)
    for i in (0, 7, N - 1):
        one = torch.zeros(N, dtype=torch.float64)
        one[i] = 1
        found = weighted_gradient(
            model, loss, data, lambda _, one=one: one, engine=engine, memory_budget=budget, seed=3
        )
        square = sum(float(part.square().sum()) for part in found.named.values())
        assert square == pytest.approx(float(found.gramian.matrix[i, i]), rel=1e-12)


@pytest.mark.parametrize("budget", [None, 6])
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_weight_0_are_dropped_not_multiplied(engine, budget):
    model, data = make("mlp", torch.float64), batch("mlp", N, torch.float64)
    clean = weighted_gradient(model, loss, data, fixed, engine=engine)
    budget = None if budget is None else budget_for_blocks(model, data, budget)
    data[0][2] = math.nan
    data[0][3] = math.inf
    found = weighted_gradient(model, loss, data, fixed, engine=engine, memory_budget=budget)
    assert_close(found.named, clean.named)
    assert found.gramian.matrix[2].isnan().all()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_infinite_loss_with_a_finite_gradient_counts_as_not_finite(engine):
    model, data = make("mlp"), batch("mlp", 4)

    def spoilt(model: Any, batch: Any) -> Tensor:
        losses = loss(model, batch)
        return torch.where(batch[0][:, 0, 0, 0] > 100, losses.detach() + math.inf + losses, losses)

    data[0][1, 0, 0, 0] = 1000.0
    found = weighted_gradient(model, spoilt, data, lambda _: None, layers=True, engine=engine)
    plain = gramian(model, spoilt, data, engine=engine).matrix
    assert plain.isfinite().all()
    assert found.losses.isfinite().tolist() == [True, False, True, True]
    for matrix in (found.gramian.matrix, *found.gramian.layers.values()):
        assert matrix.diagonal().isfinite().tolist() == [True, False, True, True]
        assert int(matrix.isnan().sum()) == 7
    torch.testing.assert_close(found.gramian.matrix[2:, 2:], plain[2:, 2:])


class Idle(nn.Module):
    """Has a layer that is never used and one whose gradient is always zero."""

    def __init__(self):
        super().__init__()
        self.used, self.idle, self.dead = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs) + (self.dead(inputs) - 1e6).relu()


@pytest.mark.parametrize("engine", ENGINES)
def test_unused_parameters_are_left_out_zero_gradients_are_not(engine):
    model, data = Idle(), torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    found = weighted_gradient(model, lambda m, x: m(x).square().sum(1), data, fixed, engine=engine)
    assert list(found.named) == ["used.weight", "used.bias", "dead.weight", "dead.bias"]
    assert not found.named["dead.weight"].any()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_in_the_rule_is_the_rule_s(engine):
    def broken(_: Gramian) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        weighted_gradient(make("mlp"), loss, batch("mlp", 4), broken, engine=engine)


def test_one_weight_a_microbatch():
    with pytest.raises(UserError, match=r"shape \(4,\), but these have shape \(12,\)"):
        weighted_gradient(make("mlp"), loss, batch("mlp", 4), fixed)
