"""A sample that is not finite spoils its own row and column and no other."""

from __future__ import annotations

from collections.abc import Callable

import ghost_cases
import pytest
import torch
from ghost_cases import Case, assert_same, check_right_or_refused, make, normal, tokens, waves
from torch import Tensor, nn

from gafscope.gradients import gramian
from gafscope.models import cnn, vit

NAN, INF = float("nan"), float("inf")
MODELS: dict[str, Case] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), normal(4)),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)),
        normal(6, 4),
    ),
    "convolutions": (lambda: cnn(3, 5, width=4, norm="group"), normal(3, 8, 8)),
    "strided": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ELU(), nn.Conv2d(4, 4, 2, groups=2)),
        normal(3, 9, 8),
    ),
    "batch norm": (lambda: cnn(3, 5, width=4, norm="batch").eval(), normal(3, 8, 8)),
    "vit": (lambda: vit(5, image_size=8, patch_size=4, dim=8, depth=1, heads=2), normal(3, 8, 8)),
    "lstm": (lambda: nn.LSTM(4, 3, batch_first=True), normal(5, 4)),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
        normal(5, 4),
    ),
}


def compare(
    model: nn.Module, batch: object, loss: Callable[..., Tensor] = waves, k: int | None = None
) -> None:
    expected = gramian(model, loss, batch, k, engine="loop")
    assert not expected.matrix.isfinite().all()
    assert_same(gramian(model, loss, batch, k, engine=ghost_cases.ENGINE), expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("value", "where"), [(NAN, (0,)), (INF, (2,)), (NAN, (5,)), (INF, (1, 3))])
def test_an_input_that_is_not_finite(name, value, where):
    factory, batch = MODELS[name]
    model, data = make(factory), batch(6)
    for i in where:
        data[i].view(-1)[7 % data[i].numel()] = value
    compare(model, data)
    compare(model, data, k=3)


def test_also_when_the_model_was_measured_before():
    factory, batch = MODELS["convolutions"]
    model, data = make(factory), batch(6)
    gramian(model, waves, data, engine=ghost_cases.ENGINE)
    data[4, 0, 0, 0] = float("nan")
    compare(model, data)


def test_every_input_not_finite():
    factory, batch = MODELS["linear"]
    check_right_or_refused(make(factory), batch(6) * NAN)


def weighted(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return waves(model, batch["x"]) * batch["weights"]


@pytest.mark.parametrize("value", [NAN, -INF])
@pytest.mark.parametrize("name", MODELS)
def test_a_loss_that_is_not_finite(name, value):
    factory, batch = MODELS[name]
    weights = torch.ones(6).double()
    weights[1] = value
    compare(make(factory), {"x": batch(6), "weights": weights}, weighted)


def test_a_gradient_that_is_not_finite_under_a_finite_loss():
    # d sqrt(x) / dx at 0 is infinite; only the first layer sees it, through the second one.
    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).abs().clamp(min=0).mul(x[:, :1].abs()).sqrt())

    data = normal(4)(6)
    data[2, 0] = 0
    compare(make(Rooted), data)


def test_an_embedding_before_a_loss_that_is_not_finite():
    model = make(lambda: nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, 7)))
    weights = torch.ones(6).double()
    weights[3] = float("inf")
    compare(model, {"x": tokens(7, 5)(6), "weights": weights}, weighted)


def test_gradients_too_large_for_float32():
    model = make(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))).float()
    data = normal(4)(6).float()
    data[2] = 1e30
    expected = gramian(model, lambda m, x: m(x).square().sum(1), data, engine="loop")
    found = gramian(model, lambda m, x: m(x).square().sum(1), data, engine=ghost_cases.ENGINE)
    assert torch.equal(found.matrix.isfinite(), expected.matrix.isfinite())
    finite = expected.matrix.isfinite()
    torch.testing.assert_close(found.matrix[finite], expected.matrix[finite], rtol=1e-4, atol=1e-6)
