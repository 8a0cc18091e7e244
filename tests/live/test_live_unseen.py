"""Jupyter's panel without Jupyter, by the clock that it is given."""

from __future__ import annotations

from itertools import pairwise

import torch

from gafscope.instruments import watch
from gafscope.live import unseen_panel


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_draws_when_the_loops_own_time_has_passed(caplog) -> None:
    clock = Clock()
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    panel = unseen_panel(clock)
    pictures = []
    with watch(model, optimizer, every=1, listeners=[panel]):
        pictures.append(bytes(panel._image.value))
        for now in (0.5, 5.0, 5.1, 10.0):
            clock.now = now
            for inputs in torch.randn(4, 8, 3):
                (model(inputs) - 1).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            pictures.append(bytes(panel._image.value))
    changes = [before != after for before, after in pairwise(pictures)]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert changes == [False, True, False, True]
    assert not caplog.records  # the last picture found its display
