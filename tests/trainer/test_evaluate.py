"""Evaluation: the mean over all samples, in pieces, without a trace in the model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from trainer_parts import LOSS, network, same, samples

from gafscope.errors import UserError
from gafscope.gradients import supervised
from gafscope.trainer import evaluate


@pytest.mark.parametrize("n", [1, 999, 1000, 1001, 2500])
def test_equals_direct_computation(n):
    model = network(norm=True, dropout=0.5)
    inputs, targets = samples(n)
    sizes = []
    model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    found = evaluate(model, LOSS, (inputs, targets))
    assert sizes == [1000] * (n // 1000) + ([n % 1000] if n % 1000 else [])
    model.eval()
    outputs = model(inputs)
    loss = nn.functional.cross_entropy(outputs, targets).item()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["accuracy"] == pytest.approx(
        (outputs.argmax(1) == targets).double().mean().item(), rel=1e-6
    )


def test_every_module_gets_its_mode_back_and_nothing_else_moves():
    model = network(norm=True, dropout=0.5).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    evaluate(model, LOSS, samples(30))
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert same(dict(model.state_dict()), before)
    assert all(p.grad is None for p in model.parameters())


def test_the_mode_comes_back_after_an_error_too():
    model = network().train()

    def broken(net, batch):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        evaluate(model, broken, samples(30))
    assert model.training


def test_losses_without_classes_have_no_accuracy():
    inputs, _ = samples(30)
    model = nn.Linear(6, 2)
    found = evaluate(model, supervised(nn.functional.mse_loss), (inputs, torch.zeros(30, 2)))
    assert found["loss"] == pytest.approx(model(inputs).square().mean().item(), rel=1e-5)
    assert math.isnan(found["accuracy"])


def test_a_scalar_loss_is_weighted_by_the_size_of_its_piece():
    inputs, _ = samples(1500)
    found = evaluate(nn.Linear(6, 2), lambda _, batch: batch.square().mean(), inputs)
    assert found["loss"] == pytest.approx(inputs.square().mean().item(), rel=1e-5)


def test_an_empty_batch_is_refused():
    with pytest.raises(UserError, match="positive number of samples"):
        evaluate(network(), LOSS, samples(0))
