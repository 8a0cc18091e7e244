"""Recurrent layers, unrolled into the calls of `linear` that they are made of.

torch computes a whole layer in one call, inside of which no parameter's use can be seen. These
functions have the signatures of torch's own and give the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from gafscope.gradients.ghost.places import Unsupported

_State: TypeAlias = tuple[Tensor, ...]
# From the input's and the state's gate values, and the state, to the next state.
_Cell: TypeAlias = Callable[[Tensor, Tensor, _State], _State]


def lstm(input: Tensor, hx: Any, params: Any, *options: Any, **named: Any) -> tuple[Tensor, ...]:
    """Unroll `torch.lstm`."""
    return _unrolled(_lstm_cell, input, hx, params, *options, **named)


def gru(input: Tensor, hx: Any, params: Any, *options: Any, **named: Any) -> tuple[Tensor, ...]:
    """Unroll `torch.gru`."""
    return _unrolled(_gru_cell, input, hx, params, *options, **named)


def rnn_tanh(
    input: Tensor, hx: Any, params: Any, *options: Any, **named: Any
) -> tuple[Tensor, ...]:
    """Unroll `torch.rnn_tanh`."""
    return _unrolled(_simple_cell(torch.tanh), input, hx, params, *options, **named)


def rnn_relu(
    input: Tensor, hx: Any, params: Any, *options: Any, **named: Any
) -> tuple[Tensor, ...]:
    """Unroll `torch.rnn_relu`."""
    return _unrolled(_simple_cell(torch.relu), input, hx, params, *options, **named)


def _lstm_cell(x: Tensor, h: Tensor, state: _State) -> _State:
    i, f, g, o = (x + h).chunk(4, -1)
    memory = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(memory), memory


def _gru_cell(x: Tensor, h: Tensor, state: _State) -> _State:
    x_reset, x_update, x_new = x.chunk(3, -1)
    h_reset, h_update, h_new = h.chunk(3, -1)
    update = torch.sigmoid(x_update + h_update)
    new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
    return ((1 - update) * new + update * state[0],)


def _simple_cell(activation: Callable[[Tensor], Tensor]) -> _Cell:
    return lambda x, h, state: (activation(x + h),)


def _unrolled(
    cell: _Cell,
    x: Tensor,
    hx: Any,
    params: Any,
    has_biases: Any,
    num_layers: Any,
    dropout: Any = None,
    train: Any = None,
    bidirectional: Any = None,
    batch_first: Any = None,
) -> tuple[Tensor, ...]:
    """Run a stack of recurrent layers step by step.

    Returns:
        The output sequence, and the last states, (layers * directions, n, features) each.
    """
    packed = isinstance(hx, Tensor) and not hx.is_floating_point()
    if packed:
        raise Unsupported("packed sequences have no unrolled form here")
    states: Sequence[Tensor] = hx if isinstance(hx, tuple | list) else (hx,)
    time = 1 if batch_first and x.ndim == 3 else 0
    directions = 2 if bidirectional else 1
    width = len(params) // (num_layers * directions)
    last: list[_State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            weights = params[index * width : (index + 1) * width]
            start = tuple(state[index] for state in states)
            output, state = _direction(cell, x, start, weights, has_biases, time, direction == 1)
            outputs.append(output)
            last.append(state)
        x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
        if dropout and train and layer < num_layers - 1:
            x = F.dropout(x, dropout, training=True)
    return (x, *(torch.stack(parts) for parts in zip(*last, strict=True)))


def _direction(
    cell: _Cell,
    x: Tensor,
    state: _State,
    weights: Sequence[Tensor],
    has_biases: bool,
    time: int,
    backwards: bool,
) -> tuple[Tensor, _State]:
    of_input, of_state, *others = weights
    biases = others[:2] if has_biases else (None, None)
    projection = others[-1] if len(others) % 2 else None
    steps = F.linear(x, of_input, biases[0]).unbind(time)
    outputs = []
    for step in reversed(steps) if backwards else steps:
        state = cell(step, F.linear(state[0], of_state, biases[1]), state)
        if projection is not None:
            state = (F.linear(state[0], projection), *state[1:])
        outputs.append(state[0])
    if backwards:
        outputs.reverse()
    return torch.stack(outputs, time), state


def _one_step(cell: _Cell) -> Callable[..., Any]:
    def step(
        x: Tensor,
        hx: Any,
        of_input: Tensor,
        of_state: Tensor,
        input_bias: Tensor | None = None,
        state_bias: Tensor | None = None,
    ) -> Any:
        state = hx if isinstance(hx, tuple | list) else (hx,)
        from_state = F.linear(state[0], of_state, state_bias)
        hidden, *memory = cell(F.linear(x, of_input, input_bias), from_state, tuple(state))
        return (hidden, *memory) if memory else hidden

    return step


UNROLLED: dict[str, Callable[..., Any]] = {
    "lstm": lstm,
    "gru": gru,
    "rnn_tanh": rnn_tanh,
    "rnn_relu": rnn_relu,
    "lstm_cell": _one_step(_lstm_cell),
    "gru_cell": _one_step(_gru_cell),
    "rnn_tanh_cell": _one_step(_simple_cell(torch.tanh)),
    "rnn_relu_cell": _one_step(_simple_cell(torch.relu)),
}
