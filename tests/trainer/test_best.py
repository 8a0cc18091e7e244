"""The best weights by validation: the first of equals, never those of a NaN."""

from __future__ import annotations

import math

import torch
from torch import nn

from gafscope.trainer.best import BestCheckpoint


def see(best: BestCheckpoint, model: nn.Linear, step: int, accuracy: float, loss: float) -> None:
    nn.init.constant_(model.weight, float(step))
    best.see(step, model, {"accuracy": accuracy, "loss": loss})


def chosen(best: BestCheckpoint, model: nn.Linear) -> tuple[int, float]:
    before = best.restore(model)
    found = model.weight[0, 0].item()
    model.load_state_dict(before)
    return best.step, found


def test_the_first_of_equally_accurate_weights_is_kept():
    best, model = BestCheckpoint(), nn.Linear(1, 1)
    for step, accuracy in enumerate((0.2, 0.7, 0.7, 0.5)):
        see(best, model, step, accuracy, loss=1.0 - step)
    assert chosen(best, model) == (1, 1.0)
    # They were copied, and what was in the model came back.
    assert model.weight.item() == 3.0


def test_without_accuracy_the_lowest_loss_counts_and_nan_never_does():
    best, model = BestCheckpoint(), nn.Linear(1, 1)
    for step, loss in enumerate((math.nan, 3.0, 2.0, math.inf, 2.5)):
        see(best, model, step, math.nan, loss)
    assert chosen(best, model) == (2, 2.0)


def test_before_any_validation_there_is_none():
    best, model = BestCheckpoint(), nn.Linear(1, 1)
    nn.init.constant_(model.weight, 4.0)
    assert chosen(best, model) == (-1, 4.0)


def test_state_goes_through_a_checkpoint():
    best, model, other = BestCheckpoint(), nn.Linear(1, 1), BestCheckpoint()
    see(best, model, 1, 0.5, 1.0)
    other.load_state_dict(best.state_dict())
    see(other, model, 2, 0.4, 1.0)
    assert chosen(other, model) == (1, 1.0)
    assert torch.equal(other.state_dict()["state"]["weight"], torch.ones(1, 1))
