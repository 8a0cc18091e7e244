"""Recurrent layers, whose parameters are used once a time step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from ghost_cases import Case, check, check_right_or_refused, make, normal
from torch import Tensor, nn
from torch.nn.utils import rnn

KINDS: dict[str, Callable[..., nn.Module]] = {
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}


class Reader(nn.Module):
    """A recurrent layer and a head on all states, or on the last one."""

    def __init__(self, layer: nn.Module, width: int = 4, last: bool = False):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, 3)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        if self.layer.batch_first:
            states = self.layer(x)[0]
        else:
            states = self.layer(x.transpose(0, 1))[0].transpose(0, 1)
        return self.head(states[:, -1] if self.last else states)


class Cell(nn.Module):
    """A cell in a loop over time."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell = cell
        self.start = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        state = self.start.expand(len(x), -1)
        memory = torch.zeros_like(state)
        for step in x.unbind(1):
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(step, (state, memory))
            else:
                state = self.cell(step, state)
        return state


class Trained(nn.Module):
    """An LSTM that starts from a trained state."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(3, 4, batch_first=True)
        self.start = nn.Parameter(torch.zeros(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        start = self.start.expand(-1, len(x), -1).contiguous()
        states, (_, cell) = self.layer(x, (start, torch.zeros_like(start)))
        return torch.cat([states[:, -1], cell[0]], 1)


class Packed(nn.Module):
    """An LSTM over sequences of different lengths."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(3, 4, batch_first=True)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        packed = rnn.pack_padded_sequence(
            batch["x"], batch["lengths"], batch_first=True, enforce_sorted=False
        )
        return self.layer(packed)[1][0][0]


CASES: dict[str, Case] = {
    f"{kind}, {'time second' if first else 'time first'}": (
        lambda kind=kind, first=first: Reader(KINDS[kind](3, 4, batch_first=first)),
        normal(5, 3),
    )
    for kind, first in itertools.product(KINDS, (True, False))
}
CASES |= {
    f"{kind}, two layers, both directions": (
        lambda kind=kind: Reader(KINDS[kind](3, 4, 2, bidirectional=True, batch_first=True), 8),
        normal(5, 3),
    )
    for kind in KINDS
}
CASES |= {
    "lstm, projected": (
        lambda: Reader(nn.LSTM(3, 6, proj_size=4, batch_first=True)),
        normal(5, 3),
    ),
    "gru, no bias": (lambda: Reader(nn.GRU(3, 4, bias=False)), normal(5, 3)),
    "lstm, last state": (lambda: Reader(nn.LSTM(3, 4, batch_first=True), last=True), normal(5, 3)),
    "lstm, one step": (lambda: Reader(nn.LSTM(3, 4, batch_first=True)), normal(1, 3)),
    "lstm, trained start": (Trained, normal(5, 3)),
    "rnn cell": (lambda: Cell(nn.RNNCell(3, 4)), normal(5, 3)),
    "lstm cell": (lambda: Cell(nn.LSTMCell(3, 4)), normal(5, 3)),
    "gru cell": (lambda: Cell(nn.GRUCell(3, 4)), normal(5, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_recurrent_layers(name):
    factory, batch = CASES[name]
    check(make(factory), batch(6), microbatches=(None, 2 + list(CASES).index(name) % 2))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_as_many_time_steps_as_samples(n):
    check(make(lambda: Reader(nn.LSTM(3, 4))), normal(n, 3)(n))
    check(make(lambda: Reader(nn.GRU(3, 4, batch_first=True))), normal(n, 3)(n))


def test_packed_sequences_are_right_or_refused():
    model = make(Packed)
    lengths = torch.tensor([5, 5, 4, 3, 2, 1])
    check_right_or_refused(model, {"x": normal(5, 3)(6), "lengths": lengths})
    check_right_or_refused(model, {"x": normal(5, 3)(6), "lengths": lengths[[3, 0, 5, 1, 2, 4]]})
