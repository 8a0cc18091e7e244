"""Programs that are no stack of layers: the ghost engine is right or refuses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ghost_cases import check_right_or_refused, make, normal
from torch import Tensor, nn

T, D = 5, 4


class Doubled(torch.autograd.Function):
    """x @ w with a backward of its own, which no function mode sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad @ w.T, 2 * x.flatten(0, -2).T @ grad.flatten(0, -2)


class Program(nn.Module):
    """Two layers, a parameter, and a function of them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)
        self.w = nn.Parameter(torch.randn(D, D))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def permuted(m: Any, x: Tensor) -> Tensor:
    order = x.sum(-1).argsort()
    return m.a(x[order]).tanh()[order.argsort()]


def experts(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    first = x[:, 0] > 0
    out[first] = m.a(x[first])
    out[~first] = m.b(x[~first])
    return out


def experts_by_index(m: Any, x: Tensor) -> Tensor:
    chosen = (x[:, 0] > 0).nonzero().squeeze(1)
    return m.b(x).index_add(0, chosen, m.a(x.index_select(0, chosen)).tanh())


def one_by_one(m: Any, x: Tensor) -> Tensor:
    return torch.stack([m.a(row).tanh() for row in x])


def in_halves(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.a(part).tanh() for part in x.chunk(2)])


def weights_of_each_sample(m: Any, x: Tensor) -> Tensor:
    made = (m.a(x)[:, :, None] * m.w).tanh()
    return torch.bmm(made, x[:, :, None]).squeeze(2)


def samples_as_groups(m: Any, x: Tensor) -> Tensor:
    # Dynamic convolution: every sample becomes a group of one large convolution.
    n = len(x)
    kernels = (m.w[None] * m.a(x)[:, :, None]).reshape(n * D, D, 1)
    return F.conv1d(x.reshape(1, n * D, 1), kernels, groups=n).view(n, D)


def samples_as_channels(m: Any, x: Tensor) -> Tensor:
    n = len(x)
    return F.conv1d(x.reshape(1, n * D, 1), m.w[:, :1, None].repeat(n, 1, 1), groups=n * D).view(
        n, D
    )


def samples_last(m: Any, x: Tensor) -> Tensor:
    return F.conv1d(x.T[None], m.w[:, :, None])[0].T


def samples_interleaved(m: Any, x: Tensor) -> Tensor:
    pairs = torch.stack([x, x.sin()], 1).flatten(0, 1)
    return m.a(pairs).view(len(x), 2, D).prod(1)


def strided_view(m: Any, x: Tensor) -> Tensor:
    return m.a(x.as_strided(x.shape, x.stride())).tanh()


def while_large(m: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = torch.where(x.norm(dim=1, keepdim=True) > 0.5, m.a(x) * 0.5, x)
    return x


def functional(m: Any, x: Tensor) -> Tensor:
    twice = {"weight": m.w * 2, "bias": m.b.bias}
    return torch.func.functional_call(m.a, twice, (x,))


def replaced(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, nn.Parameter(m.w.detach() * 2)) + m.a(x)


def under_data(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.w.data) + m.a(x)


PROGRAMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "autograd function": lambda m, x: Doubled.apply(m.a(x), m.w),
    "autograd function alone": lambda m, x: Doubled.apply(x, m.w),
    "autograd function on a derived weight": lambda m, x: Doubled.apply(x, m.w * 1.5),
    "aten operator": lambda m, x: torch.ops.aten.mm(x, m.w),
    "samples in another order": permuted,
    "samples reversed": lambda m, x: m.a(x.flip(0)).tanh().flip(0),
    "samples rolled": lambda m, x: m.a(x.roll(1, 0)).tanh().roll(-1, 0),
    "experts by mask": experts,
    "experts by index": experts_by_index,
    "one sample after the other": one_by_one,
    "in halves": in_halves,
    "weights of each sample": weights_of_each_sample,
    "samples as groups": samples_as_groups,
    "samples as channels": samples_as_channels,
    "samples last": samples_last,
    "samples interleaved": samples_interleaved,
    "samples twice": lambda m, x: m.a(torch.cat([x, x.sin()])).tanh().view(2, len(x), D).sum(0),
    "samples twice, overlapping": lambda m, x: m.a(torch.cat([x, x[:1]]))[: len(x)].tanh(),
    "strided view": strided_view,
    "a loop over values": while_large,
    "functional call": functional,
    "a new parameter": replaced,
    "through .data": under_data,
    "out of place bias": lambda m, x: m.a(x) + m.b.bias[None],
    "vmap over samples": lambda m, x: torch.vmap(m.a)(x).tanh(),
    "checkpointed lambda": lambda m, x: torch.utils.checkpoint.checkpoint(
        lambda y: m.a(y).tanh() @ m.w, x, use_reentrant=False
    ),
}


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("name", PROGRAMS)
def test_unusual_programs_are_right_or_refused(name, n):
    check_right_or_refused(make(lambda: Program(PROGRAMS[name])), normal(D)(n))


@pytest.mark.parametrize("name", [name for name in PROGRAMS if "samples" not in name])
def test_unusual_programs_with_microbatches_are_right_or_refused(name):
    check_right_or_refused(make(lambda: Program(PROGRAMS[name])), normal(D)(6), k=3)


def test_a_batch_whose_samples_are_not_its_leading_dimension_inside():
    # Sequences of several samples in one row, told apart by an index (packed batches).
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            n = len(x)
            flat = x.reshape(1, -1, D)
            owner = torch.arange(n).repeat_interleave(x.shape[1])
            return torch.zeros(n, D, dtype=x.dtype).index_add(0, owner, self.a(flat)[0].tanh())

    for n in (2, 3, 6):
        check_right_or_refused(make(Packed), normal(T, D)(n))
