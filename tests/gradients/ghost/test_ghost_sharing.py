"""Parameters that are used several times: their samples' gradients add up before they multiply."""

from __future__ import annotations

from collections.abc import Callable

import ghost_cases
import pytest
import torch
import torch.nn.functional as F
from ghost_cases import (
    Case,
    assert_same,
    check,
    check_right_or_refused,
    make,
    normal,
    tokens,
    waves,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gafscope.errors import UserError
from gafscope.gradients import gramian

T, D = 5, 7


class Program(nn.Module):
    """Layers, and a function of them."""

    def __init__(self, run: Callable[..., Tensor], **layers: nn.Module):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def tied(model: nn.Module, to: str, source: str) -> nn.Module:
    module, _, name = to.rpartition(".")
    setattr(model.get_submodule(module), name, model.get_parameter(source))
    return model


def recurrent(m: nn.Module, x: Tensor) -> Tensor:
    for _ in range(4):
        x = m.a(x).tanh()
    return x


def language_model(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(m.mix(m.tokens(x)).tanh())


def autoencoder(m: nn.Module, x: Tensor) -> Tensor:
    return F.linear(m.a(x).tanh(), m.a.weight.t())


def tied_pair(bias: bool = True) -> nn.Module:
    model = Program(
        lambda m, x: m.b(m.a(x).tanh()), a=nn.Linear(D, D), b=nn.Linear(D, D, bias=bias)
    )
    return tied(model, "b.weight", "a.weight")


CASES: dict[str, Case] = {
    "a layer four times": (lambda: Program(recurrent, a=nn.Linear(D, D)), normal(T, D)),
    "a layer four times on vectors": (lambda: Program(recurrent, a=nn.Linear(D, D)), normal(D)),
    "two inputs": (
        lambda: Program(lambda m, x: m.a(x) * m.a(x.flip(1)).tanh(), a=nn.Linear(D, 4)),
        normal(T, D),
    ),
    "different leading dimensions": (
        lambda: Program(lambda m, x: m.a(x) + m.a(x.mean(1)).tanh()[:, None], a=nn.Linear(D, 4)),
        normal(T, D),
    ),
    "different lengths": (
        lambda: Program(
            lambda m, x: torch.cat([m.a(x[:, :2]), m.a(x[:, 2:]).tanh(), m.a(x[:, :1])], 1),
            a=nn.Linear(D, 4),
        ),
        normal(T, D),
    ),
    "tied linear": (tied_pair, normal(T, D)),
    "tied linear, one bias": (lambda: tied_pair(False), normal(D)),
    "tied weights and biases": (lambda: tied(tied_pair(), "b.bias", "a.bias"), normal(T, D)),
    "autoencoder": (lambda: Program(autoencoder, a=nn.Linear(D, 4)), normal(D)),
    "autoencoder of tokens": (lambda: Program(autoencoder, a=nn.Linear(D, 4)), normal(T, D)),
    "embedding and head": (
        lambda: tied(
            Program(
                language_model,
                tokens=nn.Embedding(9, D),
                mix=nn.Linear(D, D),
                head=nn.Linear(D, 9, bias=False),
            ),
            "head.weight",
            "tokens.weight",
        ),
        tokens(9, T),
    ),
    "embedding and head with padding": (
        lambda: tied(
            Program(
                language_model,
                tokens=nn.Embedding(9, D, padding_idx=2),
                mix=nn.Linear(D, D),
                head=nn.Linear(D, 9),
            ),
            "head.weight",
            "tokens.weight",
        ),
        tokens(9, T),
    ),
    "embedding twice": (
        lambda: Program(lambda m, x: m.a(x) * m.a(x + 1).tanh(), a=nn.Embedding(9, 4)),
        tokens(8, T),
    ),
    "embedding of queries and of documents": (
        lambda: Program(lambda m, x: m.a(x[:, 0]) * m.a(x[:, 1:]).sum(1), a=nn.Embedding(9, 4)),
        tokens(9, T),
    ),
    "convolution twice": (
        lambda: Program(lambda m, x: m.a(m.a(x).tanh()), a=nn.Conv2d(3, 3, 3, padding=1)),
        normal(3, 4, 5),
    ),
    "convolution on two sizes": (
        lambda: Program(
            lambda m, x: torch.cat([m.a(x).flatten(1), m.a(F.avg_pool2d(x, 2)).flatten(1)], 1),
            a=nn.Conv2d(3, 4, 3, padding=1),
        ),
        normal(3, 4, 6),
    ),
    "convolution, two strides": (
        lambda: Program(
            lambda m, x: (
                F.conv2d(x, m.a.weight, m.a.bias, stride=2).sum((2, 3)) + m.a(x).sin().sum((2, 3))
            ),
            a=nn.Conv2d(3, 4, 3, padding=1),
        ),
        normal(3, 5, 5),
    ),
    "convolution and transposed convolution": (
        lambda: Program(
            lambda m, x: F.conv_transpose2d(m.a(x).tanh(), m.a.weight, padding=1),
            a=nn.Conv2d(3, 4, 3, padding=1),
        ),
        normal(3, 4, 5),
    ),
    "convolution and linear": (
        lambda: Program(
            lambda m, x: (
                m.a(x).flatten(1)
                + F.linear(x.mean((2, 3)), m.a.weight.flatten(1)[:, :3]).repeat(1, 20)
            ),
            a=nn.Conv2d(3, 4, 1),
        ),
        normal(3, 4, 5),
    ),
    "norm twice": (
        lambda: Program(lambda m, x: m.n(m.a(m.n(x)).tanh()), n=nn.LayerNorm(D), a=nn.Linear(D, D)),
        normal(T, D),
    ),
    "group norm on two sizes": (
        lambda: Program(
            lambda m, x: m.n(x).mean((2, 3)) + m.n(x[:, :, :2].sin()).square().mean((2, 3)),
            n=nn.GroupNorm(2, 4),
        ),
        normal(4, 5, 3),
    ),
    "weight as a matrix and as a bias": (
        lambda: Program(
            lambda m, x: m.a(x) + m.a.weight.sum(1) + m.a.bias.exp(), a=nn.Linear(D, 4)
        ),
        normal(T, D),
    ),
    "weight in linear and in a product": (
        lambda: Program(lambda m, x: m.a(x).tanh() @ m.a.weight, a=nn.Linear(D, 4)),
        normal(T, D),
    ),
    "bias of one layer scales another": (
        lambda: Program(lambda m, x: m.b(m.a(x)) * m.a.bias, a=nn.Linear(D, 4), b=nn.Linear(4, 4)),
        normal(T, D),
    ),
    "attention reused": (
        lambda: Program(
            lambda m, x: m.a(*[m.a(x, x, x, need_weights=False)[0]] * 3)[0],
            a=nn.MultiheadAttention(8, 2, batch_first=True),
        ),
        normal(T, 8),
    ),
    "shared block": (
        lambda: Program(
            recurrent, a=nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        ),
        normal(T, 8),
    ),
    "lstm twice": (
        lambda: Program(lambda m, x: m.a(m.a(x)[0].tanh())[0], a=nn.LSTM(4, 4, batch_first=True)),
        normal(T, 4),
    ),
    "siamese": (
        lambda: Program(
            lambda m, x: (m.b(m.a(x[:, 0]).relu()) - m.b(m.a(x[:, 1]).relu())).square(),
            a=nn.Linear(D, 6),
            b=nn.Linear(6, 4),
        ),
        normal(2, D),
    ),
    "siamese, one batch": (
        lambda: Program(
            lambda m, x: (m.a(x.flatten(0, 1)).tanh().view(len(x), 2, 4) * x[..., :4]).sum(1),
            a=nn.Linear(D, 4),
        ),
        normal(2, D),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shared_parameters(name):
    factory, batch = CASES[name]
    check(make(factory), batch(6))


def siamese_in_halves(m: nn.Module, x: Tensor) -> Tensor:
    first, second = m.a(torch.cat([x[:, 0], x[:, 1]])).tanh().chunk(2)
    return first * second + first


@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_siamese_pair_laid_one_batch_after_the_other(n):
    # Rows 0..n-1 and n..2n-1 of the layer's input belong to samples 0..n-1 alike.
    model = make(lambda: Program(siamese_in_halves, a=nn.Linear(D, 4)))
    check_right_or_refused(model, normal(2, D)(n))


class Recomputed(nn.Module):
    """Blocks that are computed again in the backward pass."""

    def __init__(self, reentrant: bool):
        super().__init__()
        self.a = nn.Linear(D, D)
        self.b = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for _ in range(2):
            x = x + checkpoint(self.b, x, use_reentrant=self.reentrant)
        return x


def test_checkpointed_blocks():
    check_right_or_refused(make(lambda: Recomputed(False)), normal(T, D)(6))
    check_right_or_refused(make(lambda: Recomputed(False)), normal(T, D)(6), k=2)


def test_reentrant_checkpoints_are_right_or_an_error():
    # torch itself refuses them under autograd.grad, so the loop cannot be asked.
    batch = normal(T, D)(6)
    expected = gramian(make(lambda: Recomputed(False)), waves, batch, engine="loop")
    model = make(lambda: Recomputed(True))
    for engine in (ghost_cases.ENGINE, "auto"):
        try:
            found = gramian(model, waves, batch, engine=engine)
        except (UserError, RuntimeError) as error:
            assert "heckpoint" in str(error)
        else:
            assert_same(found, expected)
