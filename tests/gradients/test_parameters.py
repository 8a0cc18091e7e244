"""Frozen, unused, tied, odd-shaped parameters; half and double precision; autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from gradient_cases import MODELS, batch, loss, make, plain_rows, relative
from torch import Tensor, nn

from gafscope.gradients import gramian, microbatch_gradients

every_engine = pytest.mark.parametrize("engine", ["loop", "vmap"])


@every_engine
def test_frozen_parameters_contribute_nothing(engine):
    model, data = make("cnn", torch.float64), batch("cnn", 6, torch.float64)
    whole = microbatch_gradients(model, loss, data, 3, engine=engine).named
    frozen = [name for name in whole if name.startswith("features.0")]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    rows = microbatch_gradients(model, loss, data, 3, engine=engine)
    assert list(rows.named) == [name for name in whole if name not in frozen]
    assert relative(rows.named, plain_rows(model, loss, data, 3)) < 1e-10
    for name, row in rows.named.items():
        torch.testing.assert_close(row, whole[name])


class PartlyUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(4, 5)
        self.unused = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@every_engine
def test_unused_parameters_have_zero_rows(engine):
    model, data = PartlyUsed(), (torch.ones(4, 4), torch.arange(4))
    rows = microbatch_gradients(model, loss, data, 2, engine=engine)
    assert rows.named["unused.weight"].shape == (2, 5, 4)
    assert not rows.named["unused.weight"].any()
    assert not rows.named["unused.bias"].any()
    assert relative(rows.named, plain_rows(model, loss, data, 2)) < 1e-6
    found = gramian(model, loss, data, 2, engine=engine)
    assert not found.layers["unused.weight"].any()
    assert (found.cosine_distance(layer="unused.weight") == 1).all()


def test_a_parameter_that_only_some_microbatches_use_has_zeros_in_the_others():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 5) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.experts[int(x[0, 0] > 0)](x)

    model = Routed()
    inputs = torch.ones(4, 4)
    inputs[2:] = -1
    rows = microbatch_gradients(model, loss, (inputs, torch.arange(4)), 2)
    assert rows.engine == "loop"
    used = {name: row.flatten(1).any(1).tolist() for name, row in rows.named.items()}
    assert used["experts.1.weight"] == [True, False]
    assert used["experts.0.weight"] == [False, True]


@every_engine
def test_tied_parameters_count_once_with_the_gradient_of_both_uses(engine):
    tied, data = make("gpt", torch.float64), batch("gpt", 6, torch.float64)
    untied = make("gpt-untied", torch.float64)
    state = dict(tied.state_dict())
    untied.load_state_dict(state)
    rows = microbatch_gradients(tied, loss, data, 3, engine=engine).named
    apart = microbatch_gradients(untied, loss, data, 3, engine=engine).named
    assert [name for name in apart if name not in rows] == ["head.weight"]
    both = apart["tokens.weight"] + apart["head.weight"]
    torch.testing.assert_close(rows["tokens.weight"], both, rtol=1e-10, atol=1e-14)
    assert apart["head.weight"].any()
    assert apart["tokens.weight"].any()
    found = gramian(tied, loss, data, 3, engine=engine)
    total = sum(row.flatten(1) @ row.flatten(1).T for row in rows.values())
    torch.testing.assert_close(found.matrix, total, rtol=1e-10, atol=1e-14)


class OddShapes(nn.Module):
    """A single number, an empty tensor and a five-dimensional one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.deep = nn.Parameter(torch.ones(1, 2, 1, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.temperature.exp() * self.deep.sum() + self.empty.sum()


@every_engine
@pytest.mark.parametrize("budget", [None, 2000])
def test_parameters_of_odd_shapes(engine, budget):
    torch.manual_seed(0)
    model = OddShapes().double()
    data = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 5
    rows = microbatch_gradients(model, loss, data, engine=engine)
    expected = plain_rows(model, loss, data, 6)
    assert relative(rows.named, expected) < 1e-10
    assert rows.named["temperature"].shape == (6,)
    assert rows.flat().shape == (6, 25 + 1 + 0 + 4)
    found = gramian(model, loss, data, engine=engine, memory_budget=budget)
    torch.testing.assert_close(found.matrix, rows.flat() @ rows.flat().T)
    assert list(found.layers) == list(expected)
    temperature = rows.named["temperature"]
    torch.testing.assert_close(found.layers["temperature"], temperature.outer(temperature))
    torch.testing.assert_close(rows.gramian().matrix, found.matrix)
    update = rows.combine(torch.full((6,), 1 / 6, dtype=torch.float64))
    torch.testing.assert_close(update["temperature"], temperature.mean())


@pytest.mark.parametrize("engine", ["loop", "auto"])
def test_sparse_embedding_gradients(engine):
    model = nn.Sequential(nn.Embedding(11, 4, sparse=True), nn.Linear(4, 11))
    dense = copy.deepcopy(model)
    dense[0].sparse = False
    data = batch("gpt", 4)
    rows = microbatch_gradients(model, loss, data, 2, engine=engine)
    assert relative(rows.named, plain_rows(dense, loss, data, 2)) < 1e-6


@every_engine
@pytest.mark.parametrize("name", ["mlp", "cnn", "cnn-batch", "resnet-group", "vit", "gpt"])
def test_bfloat16_models_have_bfloat16_rows(name, engine):
    model, data = make(name, torch.bfloat16), batch(name, 8, torch.bfloat16)
    rows = microbatch_gradients(model, loss, data, 2, engine=engine)
    assert {row.dtype for row in rows.named.values()} == {torch.bfloat16}
    plain = microbatch_gradients(
        model.double(),
        loss,
        (data[0].double() if data[0].is_floating_point() else data[0], data[1]),
        2,
    )
    cosine = torch.cosine_similarity(rows.flat().double(), plain.flat(), dim=1)
    assert (cosine > 0.97).all()


@every_engine
def test_parameters_of_two_types(engine):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5).double())
    model[0].register_forward_hook(lambda module, inputs, output: output.double())
    data = torch.randn(6, 4), torch.arange(6) % 5
    rows = microbatch_gradients(model, loss, data, 3, engine=engine)
    assert relative(rows.named, plain_rows(model, loss, data, 3)) < 1e-5
    assert rows.named["0.weight"].dtype == torch.float32
    assert rows.named["1.weight"].dtype == torch.float64
    assert rows.flat().dtype == torch.float64


@pytest.mark.parametrize("name", MODELS)
def test_autocast_with_the_loop_is_backward_under_autocast(name):
    model, data = make(name), batch(name, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain_rows(model, loss, data, 2)
        rows = microbatch_gradients(model, loss, data, 2, engine="loop")
        matrix = gramian(model, loss, data, 2, engine="loop").matrix
    plain = plain_rows(model, loss, data, 2)
    assert relative(rows.named, expected) < 1e-5
    assert relative(rows.named, plain) > 1e-5
    flat = rows.flat().double()
    torch.testing.assert_close(matrix, flat @ flat.T, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit", "gpt"])
def test_autocast_with_vmap(name):
    model, data = make(name), batch(name, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loop, vmap = (
            microbatch_gradients(model, loss, data, 2, engine=engine) for engine in ("loop", "vmap")
        )
    assert relative(vmap.named, loop.named) < 0.03


def test_autocast_that_vmap_cannot_follow_falls_to_the_loop():
    model, data = make("mlp-batch"), batch("mlp-batch", 8)
    with torch.autocast("cpu", torch.bfloat16):
        auto = microbatch_gradients(model, loss, data, 2)
        loop = microbatch_gradients(model, loss, data, 2, engine="loop")
    assert relative(auto.named, loop.named) < 0.03
