"""Parameters outside of layers: broadcast, in odd products, through functions of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ghost_cases
import pytest
import torch
import torch.nn.functional as F
from ghost_cases import check, check_right_or_refused, make, normal, waves
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gafscope.gradients import gramian

T, D = 5, 7
Use = Callable[[Tensor, Tensor], Tensor]


class With(nn.Module):
    """A parameter `w` and what is done with it, after a layer and before another."""

    def __init__(self, shape: tuple[int, ...], use: Use, width: int = D):
        super().__init__()
        self.first = nn.Linear(D, D)
        self.w = nn.Parameter(torch.randn(shape))
        self.use = use
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.use(self.first(x).tanh(), self.w))


def one(shape: tuple[int, ...], use: Use, width: int = D) -> Callable[[], nn.Module]:
    return lambda: With(shape, use, width)


BROADCAST: dict[str, Callable[[], nn.Module]] = {
    "positions": one((T, D), lambda x, w: x + w),
    "positions with a leading 1": one((1, T, D), lambda x, w: x + w),
    "positions cut": one((9, D), lambda x, w: x + w[: x.shape[1]]),
    "positions cut, leading 1": one((1, 9, D), lambda x, w: x + w[:, : x.shape[1]]),
    "positions looked up": one((9, D), lambda x, w: x + F.embedding(torch.arange(T), w)),
    "positions in place": one((T, D), lambda x, w: x.sin().add_(w)),
    "positions subtracted": one((T, D), lambda x, w: w - x),
    "positions, alpha": one((T, D), lambda x, w: torch.add(x, w, alpha=0.3)),
    "positions, first argument": one((T, D), lambda x, w: torch.add(w, x, alpha=0.3)),
    "a bias": one((D,), lambda x, w: x + w),
    "a bias of tokens": one((T, 1), lambda x, w: x + w),
    "layer scale": one((D,), lambda x, w: x + w * x.tanh()),
    "scale with leading 1s": one((1, 1, D), lambda x, w: x * w),
    "scale of tokens": one((T, 1), lambda x, w: x * w),
    "divided": one((D,), lambda x, w: x / (2 + w.square())),
    "power": one((D,), lambda x, w: (1 + x.square()).pow(w)),
    "a scalar": one((), lambda x, w: x * w),
    "a number of shape 1": one((1,), lambda x, w: x * w),
    "scalar temperature": one((), lambda x, w: (x / w.exp()).softmax(-1)),
    "sigmoid gate": one((), lambda x, w: w.sigmoid() * x + (1 - w.sigmoid()) * x.sin()),
    "where": one((D,), lambda x, w: torch.where(x > 0, x, w)),
    "where with scalar": one((), lambda x, w: torch.where(x > 0, x, w)),
    "mask token": one((D,), lambda x, w: torch.where(x[..., :1] > 0, x, w)),
    "masked fill": one((), lambda x, w: x.masked_fill(x > 0.2, w)),
    "maximum": one((D,), lambda x, w: torch.maximum(x, w)),
    "lerp": one((D,), lambda x, w: x.lerp(x.sin(), w)),
    "addcmul": one((D,), lambda x, w: torch.addcmul(x, x.sin(), w, value=0.4)),
    "a class token": one((1, 1, D), lambda x, w: torch.cat([w.expand(len(x), -1, -1), x], 1)),
    "a class token repeated": one((D,), lambda x, w: torch.cat([w.repeat(len(x), 1, 1), x], 1)),
    "a class token at the end": one((1, D), lambda x, w: torch.cat([x, w.expand(len(x), 1, D)], 1)),
    "prompt tokens": one((2, D), lambda x, w: torch.cat([w[None].expand(len(x), -1, -1), x], 1)),
    "broadcast_to": one((D,), lambda x, w: x + w.broadcast_to(x.shape)),
    "expand_as": one((D,), lambda x, w: x + w.expand_as(x)),
    "new axes": one((D,), lambda x, w: x + w[None, None]),
    "unsqueezed": one((T,), lambda x, w: x + w.unsqueeze(-1)),
    "written into zeros": one((D,), lambda x, w: torch.zeros_like(x) + w + x),
    "only the parameter reaches the loss": one((T, D), lambda x, w: 0 * x + w),
}
PRODUCTS: dict[str, Callable[[], nn.Module]] = {
    "layer scale in place": one((D,), lambda x, w: x + x.sin().mul_(w)),
    "x @ w": one((D, 4), lambda x, w: x @ w, 4),
    "x @ w.t()": one((4, D), lambda x, w: x @ w.t(), 4),
    "x @ w.T": one((4, D), lambda x, w: x @ w.T, 4),
    "(w @ x.mT).mT": one((4, D), lambda x, w: (w @ x.mT).mT, 4),
    "tokens mixed, w @ x": one((T, T), lambda x, w: w @ x),
    "matmul": one((D, 4), lambda x, w: torch.matmul(x, w), 4),
    "x @ vector": one((D,), lambda x, w: (x @ w)[..., None] * x),
    "bmm": one((D, 4), lambda x, w: torch.bmm(x, w.expand(len(x), -1, -1)), 4),
    "baddbmm": one((D, 4), lambda x, w: torch.baddbmm(x[..., :4], x, w.expand(len(x), D, 4)), 4),
    "einsum": one((D, 4), lambda x, w: torch.einsum("ntd,de->nte", x, w), 4),
    "einsum, parameter first": one((4, D), lambda x, w: torch.einsum("ed,ntd->nte", w, x), 4),
    "einsum of heads": one(
        (2, D, 4), lambda x, w: torch.einsum("ntd,hde->nthe", x, w).sum(2).sin(), 4
    ),
    "einsum with an ellipsis": one((D, 4), lambda x, w: torch.einsum("...d,de->...e", x, w), 4),
    "einsum twice": one(
        (D, D), lambda x, w: torch.einsum("ntd,de,nte->nt", x, w, x)[..., None] * x
    ),
    "tensordot": one((D, 4), lambda x, w: torch.tensordot(x, w, dims=1), 4),
    "F.linear of a slice": one((9, D), lambda x, w: F.linear(x, w[2:6]), 4),
    "F.linear, no bias, transposed view": one((D, 4), lambda x, w: F.linear(x, w.T), 4),
    "addmm": one((D, D), lambda x, w: torch.addmm(w[0], x.flatten(0, 1), w, alpha=0.5).view_as(x)),
    "mm of flat tokens": one((D, 4), lambda x, w: torch.mm(x.reshape(-1, D), w).view(-1, T, 4), 4),
    "mv of flat tokens": one((D,), lambda x, w: torch.mv(x.reshape(-1, D), w).view(-1, T, 1) * x),
    "outer sum": one((D,), lambda x, w: (x[..., None] * w).sum(-2)),
    "bilinear form": one((D, D), lambda x, w: ((x @ w) * x).sum(-1, keepdim=True) * x),
    "conv of a slice": one(
        (8, T, 3), lambda x, w: F.conv1d(x, w[:T], padding=1).relu() + F.conv1d(x, w[3:], padding=1)
    ),
    "distances to prototypes": one((4, D), lambda x, w: torch.cdist(x, w), 4),
    "cosine to prototypes": one(
        (4, D), lambda x, w: F.linear(F.normalize(x, dim=-1), F.normalize(w)), 4
    ),
    "cosine similarity": one((D,), lambda x, w: F.cosine_similarity(x, w, dim=-1)[..., None] * x),
    "layer norm by function": one((2, D), lambda x, w: F.layer_norm(x, (D,), w[0], w[1])),
    "gathered rows": one((9, D), lambda x, w: x + w[(x[..., 0] > 0).long() + 1]),
    "index select": one((9, D), lambda x, w: x + w.index_select(0, torch.arange(T))),
    "take": one((9,), lambda x, w: x * w.take((x > 0).long())),
    "roll and flip of the parameter": one((T, D), lambda x, w: x * w.roll(1, 0) + w.flip(1)),
    "softmax mixing": one((3,), lambda x, w: sum(a * x**i for i, a in enumerate(w.softmax(0)))),
    "unbound": one((2, D), lambda x, w: x * w.unbind(0)[0] + w.unbind(0)[1]),
    "chunks": one((8, D), lambda x, w: x @ w.chunk(2)[0].T + (x @ w.chunk(2)[1].T).sin(), 4),
    "low-rank update": one(
        (D, 4), lambda x, w: F.linear(x, torch.eye(D, dtype=x.dtype) + w @ w.T * 0.5)
    ),
    "masked weight": one((4, D), lambda x, w: F.linear(x, w * (w > 0)), 4),
    "standardised weight": one((4, D), lambda x, w: F.linear(x, (w - w.mean()) / w.std()), 4),
    "straight through": one((4, D), lambda x, w: F.linear(x, w + (w.round() - w).detach()), 4),
    "exponential weight": one((4, D), lambda x, w: F.linear(x, w.exp() * 0.3), 4),
    "detached once": one((D, D), lambda x, w: F.linear(F.linear(x, w.detach()).tanh(), w)),
    "stacked": one((D,), lambda x, w: F.linear(x, torch.stack([w, w.sin(), w * w])), 3),
    "block diagonal": one((2, 2), lambda x, w: F.linear(x[..., :4], torch.block_diag(w, w.T)), 4),
    "a view of one number": one((3, 3), lambda x, w: x * w[1, 2]),
    "as a norm": one((D,), lambda x, w: x * w.norm() + w.mean()),
    "fft filter": one((D // 2 + 1,), lambda x, w: torch.fft.irfft(torch.fft.rfft(x) * w, n=D)),
    "vmap inside": one((4, D), lambda x, w: torch.vmap(lambda row: F.linear(row, w))(x), 4),
}


@pytest.mark.parametrize("name", BROADCAST)
def test_broadcast_parameters(name):
    check(make(BROADCAST[name]), normal(T, D)(6))


@pytest.mark.parametrize("name", PRODUCTS)
def test_parameters_in_odd_products(name):
    check_right_or_refused(make(PRODUCTS[name]), normal(T, D)(6))
    check_right_or_refused(make(PRODUCTS[name]), normal(T, D)(6), k=2)


@pytest.mark.parametrize(
    "name", ["positions", "a scalar", "a class token", "layer scale", "where", "scale of tokens"]
)
@pytest.mark.parametrize("n", [1, 2, 3, T])
def test_as_many_samples_as_tokens_or_features(name, n):
    check(make(BROADCAST[name]), normal(T, D)(n), microbatches=(None, 1))


@pytest.mark.parametrize(
    "name",
    ["x @ w", "tokens mixed, w @ x", "(w @ x.mT).mT", "mm of flat tokens", "einsum", "outer sum"],
)
@pytest.mark.parametrize("n", [1, 2, 3, T])
def test_odd_products_with_as_many_samples_as_tokens_or_features(name, n):
    check_right_or_refused(make(PRODUCTS[name]), normal(T, D)(n))


PARAMETRIZED: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(D, 4)),
    "weight norm of a convolution": lambda: parametrizations.weight_norm(nn.Conv1d(T, 4, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(D, 4)),
    "spectral norm, evaluation": lambda: parametrizations.spectral_norm(nn.Linear(D, 4)).eval(),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(D, 4)),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrizations(name):
    model = make(lambda: nn.Sequential(PARAMETRIZED[name](), nn.Tanh()))
    check_right_or_refused(model, normal(T, D)(6))


class Lists(nn.Module):
    """Parameters in lists and dicts, some of which are never used."""

    def __init__(self):
        super().__init__()
        self.list = nn.ParameterList([torch.randn(D) for _ in range(3)])
        self.dict = nn.ParameterDict({"scale": torch.randn(()), "idle": torch.randn(2, 2)})
        self.idle = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for p in self.list:
            x = (x * p).tanh()
        return x * self.dict["scale"]


def test_unused_parameters_have_zeros():
    model, batch = make(Lists), normal(T, D)(6)
    check(model, batch)
    layers = gramian(model, waves, batch, engine=ghost_cases.ENGINE).layers
    for name in ("idle.weight", "idle.bias", "dict.idle"):
        assert not layers[name].any()


@pytest.mark.parametrize("frozen", ["first.weight", "first.bias", "last.weight", "w", "first"])
def test_frozen_parameters_are_absent(frozen):
    model, batch = make(BROADCAST["positions"]), normal(T, D)(6)
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    check(model, batch)
    layers = gramian(model, waves, batch, engine=ghost_cases.ENGINE).layers
    assert layers
    assert not any(name.startswith(frozen) for name in layers)


def residual(last: nn.Module) -> nn.Module:
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(D, D)
            self.branch = nn.Sequential(nn.Linear(D, 6), nn.ReLU(), last)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.branch(x)

    return Residual()


def test_a_branch_that_starts_at_zero_has_zero_gradients():
    model, batch = make(lambda: residual(nn.Linear(6, D))), normal(T, D)(6)
    nn.init.zeros_(model.branch[2].weight)
    check(model, batch)
    found = gramian(model, waves, batch, engine=ghost_cases.ENGINE)
    assert not found.layers["branch.0.weight"].any()
    assert found.layers["branch.2.weight"].any()


def test_dead_units_have_zero_gradients():
    model, batch = make(lambda: residual(nn.Linear(6, D))), normal(T, D)(6)
    nn.init.constant_(model.branch[0].bias, -100)
    check(model, batch)
    found = gramian(model, waves, batch, engine=ghost_cases.ENGINE)
    assert not found.layers["branch.0.weight"].any()
    assert not found.layers["branch.2.weight"].any()


def test_some_samples_without_any_gradient():
    model, batch = make(lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh())), normal(T, D)(6)

    def weighted(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return waves(model, batch["x"]) * batch["weights"]

    for weights in ([0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 2.0]):
        data = {"x": batch, "weights": torch.tensor(weights).double()}
        check(model, data, weighted)


def test_a_detached_output_has_zeros():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(D, 4), nn.Linear(D, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.b(x).detach()

    check(make(Detached), normal(T, D)(6))


def test_a_layer_under_no_grad_has_zeros():
    class NoGrad(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.a(x)
            return self.b(x.tanh())

    check(make(NoGrad), normal(T, D)(6))


def test_a_parameter_that_several_paths_take_to_several_losses():
    model, batch = make(BROADCAST["layer scale"]), normal(T, D)(6)

    def two(model: Any, batch: Tensor) -> Tensor:
        return waves(model, batch) + 0.3 * waves(model, batch.flip(1)).square()

    check(model, batch, two)
