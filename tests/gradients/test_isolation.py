"""A measurement leaves no trace, whatever happens inside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gradient_cases import MODELS, batch, loss, make, plain_rows, relative
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.gradients import gramian, microbatch_gradients

ENGINES = ["loop", "vmap", "auto"]


class Restless(nn.Module):
    """A module that changes its buffers in every way there is, in place only where asked to."""

    def __init__(self, in_place: bool = True):
        super().__init__()
        self.writes = in_place
        self.linear = nn.Linear(192, 5)
        self.register_buffer("in_place", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("through_data", torch.full((2,), float("nan")))
        self.register_buffer("statistics", torch.zeros(192))
        self.register_buffer("late", None)
        self.register_buffer("mask", torch.ones(1, 5).expand(4, 5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.writes:  # which vmap cannot follow
            self.in_place += 1
            self.through_data.data.fill_(3)
        self.replaced = self.replaced + 1
        self.late = torch.ones(2)
        self.register_buffer("added", torch.ones(2))
        x = x.flatten(1)
        self.statistics = 0.9 * self.statistics + 0.1 * x.detach().mean(0)
        # The output depends on the buffers, so that any drift would show.
        return self.linear(x - self.statistics) * (1 + self.in_place) * self.replaced.sum()


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "buffers": copy.deepcopy(dict(model.named_buffers())),
        "parameters": copy.deepcopy(dict(model.named_parameters())),
        "gradients": {n: copy.deepcopy(p.grad) for n, p in model.named_parameters()},
        "random state": torch.get_rng_state(),
        "objects": [id(t) for t in (*model.parameters(), *model.buffers())],
        "gradient objects": [id(p.grad) for p in model.parameters()],
        "names": list(model.state_dict()),
        "trainable": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "tensor hooks": [len(p._backward_hooks or ()) for p in model.parameters()],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_equal_states(after: dict[str, Any], before: dict[str, Any]) -> None:
    for name, value in before.items():
        if isinstance(value, Tensor | dict):
            exact = {"rtol": 0, "atol": 0, "equal_nan": True}
            tensors = (
                {k: v for k, v in found.items() if v is not None}
                if isinstance(found, dict)
                else found
                for found in (after[name], value)
            )
            torch.testing.assert_close(*tensors, **exact, msg=f"{name} changed")
        else:
            assert after[name] == value, f"{name} changed"


def with_a_past(name: str) -> nn.Module:
    """A model with a gradient, a frozen parameter and a hook."""
    model = Restless(name.endswith("writing")) if name.startswith("restless") else make(name)
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[0].register_hook(lambda gradient: gradient)
    parameters[-1].requires_grad_(False)
    next(iter(model.children())).register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("engine", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("name", [*MODELS, "restless", "restless-writing"])
def test_nothing_is_left_behind(name, engine):
    if engine == "vmap" and name == "restless-writing":
        engine = "auto"
    model, data = with_a_past(name), batch(name, 4)
    before = state(model)
    microbatch_gradients(model, loss, data, 2, engine=engine)
    assert_equal_states(state(model), before)
    gramian(model, loss, data, 2, engine=engine, memory_budget=10**8, seed=3)
    assert_equal_states(state(model), before)


@pytest.mark.parametrize("name", ["mlp-batch", "restless", "restless-writing"])
@pytest.mark.parametrize(("engine", "call"), [("loop", 1), ("loop", 2), ("vmap", 1), ("auto", 1)])
def test_nothing_is_left_behind_when_the_loss_fails(name, engine, call):
    model, data = with_a_past(name), batch(name, 4)
    calls = []

    def failing(model: nn.Module, batch: Any) -> Tensor:
        losses = loss(model, batch)
        calls.append(1)
        if len(calls) == call:
            model.eval()
            raise KeyError("inside the loss")
        return losses

    before = state(model)
    with pytest.raises((KeyError, UserError)) as error:
        gramian(model, failing, data, 2, engine=engine)
    assert isinstance(error.value, KeyError) or name == "restless-writing"
    assert_equal_states(state(model), before)


def test_nothing_is_left_behind_when_vmap_fails_and_the_loop_takes_over():
    class Branching(Restless):
        def forward(self, x: Tensor) -> Tensor:
            outputs = super().forward(x)
            return outputs if outputs.sum() > 0 else -outputs

    model, data = Branching(), batch("mlp", 4)
    before = state(model)
    found = gramian(model, loss, data, 2)
    assert found.engine == "loop"
    assert_equal_states(state(model), before)
    # What the failed attempt did to the buffers must not show either.
    assert torch.equal(found.matrix, gramian(model, loss, data, 2, engine="loop").matrix)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_every_microbatch_sees_the_same_buffers(engine):
    model, data = Restless(in_place=engine == "loop").double(), batch("mlp", 8, torch.float64)
    expected = plain_rows(model, loss, data, 4)
    rows = microbatch_gradients(model, loss, data, 4, engine=engine)
    assert relative(rows.named, expected) < 1e-10
    budget = 3 * 965 * 8 + 60_000
    for limit in (None, budget):
        found = gramian(model, loss, data, 4, engine=engine, memory_budget=limit)
        torch.testing.assert_close(found.matrix, rows.gramian().matrix, rtol=1e-10, atol=0)


@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_an_embedding_that_rescales_its_weight_is_put_back(engine):
    model = nn.Embedding(11, 4, max_norm=0.5)
    data = batch("gpt", 4)[0]
    before = model.weight.detach().clone()

    def norms(model: nn.Module, tokens: Tensor) -> Tensor:
        return model(tokens).square().mean((1, 2))

    expected = plain_rows(model, norms, data, 2)
    rows = microbatch_gradients(model, norms, data, 2, engine=engine)
    assert torch.equal(model.weight, before)
    assert relative(rows.named, expected) < 1e-5


def test_spectral_norms_power_iteration_does_not_go_on():
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3))
    data = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))

    def squares(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean(1)

    before = state(model)
    loop, vmap = (microbatch_gradients(model, squares, data, 4, engine=e) for e in ("loop", "vmap"))
    assert relative(vmap.named, loop.named) < 1e-5
    assert_equal_states(state(model), before)


def test_a_graph_built_before_can_still_be_differentiated():
    # BatchNorm in evaluation mode saves its running statistics for the backward pass.
    model, data = make("mlp-batch").eval(), batch("mlp-batch", 4)
    value = loss(model, data).mean()
    gramian(model, loss, data, 2)
    value.backward()


def test_only_the_generators_that_are_put_back_are_seeded(monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("this reseeds every accelerator, now or when it is first used")

    model = make("mlp")
    monkeypatch.setattr(torch, "manual_seed", refuse)
    monkeypatch.setattr(torch.random, "manual_seed", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    for engine in ("loop", "vmap"):
        gramian(model, loss, batch("mlp", 4), 2, engine=engine, seed=1)


def test_hooks_see_the_forward_passes_but_no_gradient_is_accumulated():
    model, data = make("mlp"), batch("mlp", 4)
    forwards, accumulated = [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: accumulated.append(1))
    gramian(model, loss, data, 2, engine="loop")
    assert len(forwards) == 2
    assert not accumulated
