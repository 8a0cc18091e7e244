"""A per-sample step against gradients taken sample by sample and added up by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW

import gafscope as gs
from gafscope.aggregation import GAF, Decision, HalvingGAF, Mean
from gafscope.errors import UserError

LOSS = gs.supervised(F.cross_entropy)
N = 8
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: gs.models.mlp(12, (6,), 5),
    "cnn": lambda: gs.models.cnn(3, 5, width=4, norm="group"),
    "gpt": lambda: gs.models.gpt(11, context=8, dim=8, depth=1, heads=2),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype)


def batch(name: str, n: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Half of the samples are near copies of each other: some agree, some do not."""
    generator = torch.Generator().manual_seed(1)
    if name == "gpt":
        tokens = torch.randint(11, (n, 7), generator=generator)
        tokens[: n // 2, 1:] = tokens[0, 1:]
        return tokens[:, :-1], tokens[:, 1:].clone()
    shape = (12,) if name == "mlp" else (3, 8, 8)
    inputs = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    inputs[: n // 2] = inputs[0] + 0.1 * inputs[: n // 2]
    targets = torch.randint(5, (n,), generator=generator)
    targets[: n // 2] = 2
    return inputs.to(dtype), targets


class Soft:
    """Weights that grow with a sample's agreement with all; a rule of the user's own."""

    def __call__(self, gramian, /) -> Decision:
        cosine = 1 - gramian.cosine_distance().nan_to_num(1.0)
        finite = torch.isfinite(gramian.matrix.diagonal())
        weights = torch.where(finite, (3 * cosine.sum(1)).exp(), 0.0)
        none = torch.full((gramian.k,), math.nan, dtype=torch.float64)
        return Decision(weights / weights.sum(), finite, True, none, finite)


def by_hand(model: nn.Module, data: Any) -> tuple[Tensor, Tensor]:
    """One backward a sample: gradients (n, P) and losses (n,)."""
    rows, losses = [], []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for i in range(len(data[0])):
        value = LOSS(model, (data[0][i : i + 1], data[1][i : i + 1])).mean()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
        losses.append(value.detach())
    return torch.stack(rows), torch.stack(losses)


def algorithm_1(rows: Tensor, tau: float) -> Tensor:
    total, count = rows[0], 1
    for row in rows[1:]:
        if 1 - row @ total / (row.norm() * total.norm()) <= tau:
            total, count = total + row, count + 1
    assert 1 < count < len(rows)
    return total / count


def halving(rows: Tensor, tau: float) -> Tensor:
    running = rows[0]
    for row in rows[1:]:
        if 1 - row @ running / (row.norm() * running.norm()) <= tau:
            running = (running + row) / 2
    return running


def softly(rows: Tensor) -> Tensor:
    unit = rows / rows.norm(dim=1, keepdim=True)
    return torch.softmax(3 * (unit @ unit.T).sum(1), 0) @ rows


RULES: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "GAF": (GAF(0.9), lambda rows: algorithm_1(rows, 0.9)),
    "halving": (HalvingGAF(0.9), lambda rows: halving(rows, 0.9)),
    "mean": (Mean(), lambda rows: rows.mean(0)),
    "soft": (Soft(), softly),
}


def flat_grad(model: nn.Module) -> Tensor:
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("engine", ["auto", "loop", "vmap"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_the_update_of_a_rule(name, rule, engine):
    model, data = make(name), batch(name)
    weighting, expected = RULES[rule]
    rows, losses = by_hand(model, data)
    step = gs.per_sample_step(model, LOSS, data, weighting, engine=engine)
    torch.testing.assert_close(flat_grad(model), expected(rows), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(step.losses, losses)
    torch.testing.assert_close(step.gramian.matrix, rows @ rows.T)
    assert step.decision.step
    assert not step.gramian.layers


def test_float32_follows_float64():
    wide, narrow = make("cnn"), make("cnn", torch.float32)
    gs.per_sample_step(wide, LOSS, batch("cnn"), Mean())
    gs.per_sample_step(narrow, LOSS, batch("cnn", dtype=torch.float32), Mean())
    assert flat_grad(narrow).dtype == torch.float32
    torch.testing.assert_close(flat_grad(narrow).double(), flat_grad(wide), rtol=1e-3, atol=1e-6)


def test_layers_reach_the_rule():
    seen = []

    def rule(gramian) -> Decision:
        seen.append(list(gramian.layers))
        return Mean()(gramian)

    model = make("mlp")
    step = gs.per_sample_step(model, LOSS, batch("mlp"), rule, layers=True)
    assert seen == [[name for name, _ in model.named_parameters()]]
    assert list(step.gramian.layers) == seen[0]


def test_microbatches_are_compared_by_their_means():
    model, data = make("mlp"), batch("mlp")
    rows, losses = by_hand(model, data)
    step = gs.per_sample_step(model, LOSS, data, HalvingGAF(2.0), microbatches=4)
    pairs = rows.view(4, 2, -1).mean(1)
    torch.testing.assert_close(flat_grad(model), halving(pairs, 2.0))
    torch.testing.assert_close(step.losses, losses.view(4, 2).mean(1))


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: AdamW(p, 0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_moves_nothing(name):
    model, data = make("mlp"), batch("mlp")
    optimizer = OPTIMIZERS[name](model.parameters())
    gs.per_sample_step(model, LOSS, data, Mean())
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    step = gs.per_sample_step(model, LOSS, data, GAF(0.0))
    assert not step.decision.step
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    after = (model.state_dict(), optimizer.state_dict())
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    for i, state in before[1]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, after[1]["state"][i][key])


@pytest.mark.parametrize("rule", [Mean(), Soft()])
def test_what_was_in_grad_is_replaced(rule):
    model, data = make("mlp"), batch("mlp")
    gs.per_sample_step(model, LOSS, data, rule)
    first = flat_grad(model)
    gs.per_sample_step(model, LOSS, data, rule)
    assert torch.equal(flat_grad(model), first)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rule", [Mean(), GAF(2.0), Soft()])
def test_a_sample_that_is_not_finite_is_dropped(rule, bad):
    model, data = make("mlp"), batch("mlp")
    data[0][3] = bad
    keep = [i for i in range(N) if i != 3]
    step = gs.per_sample_step(model, LOSS, data, rule)
    found = flat_grad(model)
    gs.per_sample_step(model, LOSS, (data[0][keep], data[1][keep]), rule)
    torch.testing.assert_close(found, flat_grad(model))
    assert not step.decision.accepted[3]
    assert step.decision.finite.tolist() == [i != 3 for i in range(N)]
    assert step.losses.isfinite().tolist() == [i != 3 for i in range(N)]


def test_tied_weights_get_the_gradient_of_both_uses():
    model, data = make("gpt"), batch("gpt")
    names = dict(model.named_parameters())
    assert len(names) < len(dict(model.named_parameters(remove_duplicate=False)))
    gs.per_sample_step(model, LOSS, data, Mean())
    twin = copy.deepcopy(model)
    twin.zero_grad()
    LOSS(twin, data).mean().backward()
    for p, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad)


def test_frozen_and_unused_parameters_stay_where_they_are():
    model, data = make("mlp"), batch("mlp")
    model.register_module("idle", nn.Linear(2, 2))
    frozen = next(model.parameters()).requires_grad_(False)
    mark = torch.ones_like(frozen)
    frozen.grad = mark
    before = copy.deepcopy(model.state_dict())
    gs.per_sample_step(model, LOSS, data, Mean())
    assert frozen.grad is mark
    assert model.idle.weight.grad is None
    frozen.grad = None
    AdamW(model.parameters(), 0.1, weight_decay=0.5).step()
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(before[key], value)
    }
    assert moved == {"layers.1.bias", "layers.3.weight", "layers.3.bias"}


def test_each_step_draws_masks_of_its_own_from_the_global_generator():
    model, data = gs.models.mlp(12, (64,), 5, dropout=0.5).double(), batch("mlp")

    def grads(count: int, **options: Any) -> list[Tensor]:
        torch.manual_seed(5)
        found = []
        for _ in range(count):
            gs.per_sample_step(model, LOSS, data, Mean(), **options)
            found.append(flat_grad(model))
        return found

    first, again = grads(3), grads(3)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], first[1])
    one, other = grads(2, seed=1)
    assert torch.equal(one, other)


def test_a_rule_that_accepts_nan_is_refused_and_grad_left_alone():
    def careless(gramian) -> Decision:
        everything = torch.ones(gramian.k, dtype=torch.bool)
        equal = torch.full((gramian.k,), 1 / gramian.k, dtype=torch.float64)
        return Decision(equal, everything, True, equal, everything)

    model, data = make("mlp"), batch("mlp")
    data[0][3] = math.nan
    with pytest.raises(UserError, match="accepts a micro-gradient that is not finite"):
        gs.per_sample_step(model, LOSS, data, careless)
    assert all(p.grad is None for p in model.parameters())


def test_batch_norm_in_training_mode_is_refused():
    model = gs.models.cnn(3, 5, width=4, norm="batch").double()
    with pytest.raises(UserError, match="Per-sample gradients with BatchNorm"):
        gs.per_sample_step(model, LOSS, batch("cnn"), Mean())
    gs.per_sample_step(model.eval(), LOSS, batch("cnn"), Mean())
    assert all(p.grad is not None for p in model.parameters())


def test_a_scalar_loss_of_single_samples():
    model, data = make("mlp"), batch("mlp")
    gs.per_sample_step(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), data, Mean())
    torch.testing.assert_close(flat_grad(model), by_hand(model, data)[0].mean(0))
