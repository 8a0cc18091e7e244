"""Mistakes in what is asked for: each one message, with the rule, the value and the remedy."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from gradient_cases import batch, loss, make
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.gradients import gramian, microbatch_gradients
from gafscope.gradients.problem import batch_size, make_problem

both = pytest.mark.parametrize("measure", [gramian, microbatch_gradients])


@both
@pytest.mark.parametrize("k", [5, 7, 13, 24, 0, -1, -3])
def test_microbatches_must_divide_the_samples(measure, k):
    message = (
        f"12 samples cannot be cut into {k} equal microbatches; choose from 1, 2, 3, 4, 6, 12."
    )
    with pytest.raises(UserError, match=re.escape(message)):
        measure(make("mlp"), loss, batch("mlp", 12), k)


@pytest.mark.parametrize("k", [2.0, 2.5, "2"])
def test_the_number_of_microbatches_is_a_whole_number(k):
    # Without the type checker of the tests, as a user calls it.
    with pytest.raises(UserError, match="microbatches must divide"):
        inspect.unwrap(make_problem)(make("mlp"), loss, batch("mlp", 12), k, None)


def test_a_long_list_of_divisors_is_cut():
    with pytest.raises(UserError, match=r"choose from 1, 2, 3, .*, \.\.\.\.$") as error:
        gramian(make("mlp"), loss, batch("mlp", 5040), 11)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ([], "nothing"),
        ({}, "nothing"),
        ((torch.ones(3), 5), "a int"),
        ((torch.ones(3), None), "a NoneType"),
        ({"x": torch.ones(3), "name": "cat"}, "a str"),
        ((torch.ones(3), torch.tensor(2.0)), "a tensor without dimensions"),
        (object(), "a object"),
    ],
)
def test_a_batch_is_made_of_tensors(data, found):
    with pytest.raises(UserError, match=f"made of tensors.*{found}"):
        gramian(make("mlp"), loss, data)


@pytest.mark.parametrize(
    ("sizes", "found"), [((3, 4), r"\[3, 4\]"), ((6, 3), r"\[3, 6\]"), ((0, 0), r"\[0\]")]
)
def test_all_tensors_of_a_batch_have_the_same_number_of_samples(sizes, found):
    data = {str(i): torch.ones(n, 2) for i, n in enumerate(sizes)}
    with pytest.raises(UserError, match=f"same, positive number of samples.*{found}"):
        microbatch_gradients(make("mlp"), loss, data)


def test_the_size_of_a_batch():
    assert batch_size([torch.ones(4, 2), {"a": (torch.ones(4),)}]) == 4


@both
@pytest.mark.parametrize("empty", [nn.ReLU(), nn.Linear(192, 5).requires_grad_(False)])
def test_nothing_to_train(measure, empty):
    with pytest.raises(UserError, match=r"no parameter that requires a gradient.*requires_grad_"):
        measure(empty, loss, batch("mlp", 4))


@both
@pytest.mark.parametrize("engine", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("name", ["mlp-batch", "cnn-batch", "resnet-batch"])
def test_single_samples_with_batch_norm_in_training_mode(measure, engine, name):
    model, data = make(name), batch(name, 4)
    message = (
        r"samples \('.*' is a BatchNorm.d in training mode\).*model.eval.*GroupNorm.*at least 2"
    )
    with pytest.raises(UserError, match=message):
        measure(model, loss, data, engine=engine)
    with pytest.raises(UserError, match="BatchNorm"):
        measure(model, loss, data, 4, engine=engine)
    assert measure(model, loss, data, 2, engine=engine).k == 2
    assert measure(model.eval(), loss, data, engine=engine).k == 4


def test_one_batch_norm_in_training_mode_is_enough_to_refuse():
    model = make("cnn-batch").eval()
    layer = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    layer.train()
    with pytest.raises(UserError, match="BatchNorm2d"):
        gramian(model, loss, batch("cnn", 4))


def test_batch_norm_without_running_statistics_couples_samples_in_evaluation_mode_too():
    model = nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(192, track_running_stats=False), nn.Linear(192, 5)
    ).eval()
    with pytest.raises(UserError, match="BatchNorm1d"):
        gramian(model, loss, batch("mlp", 4))


def test_other_norms_do_not_couple_samples():
    model = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.Flatten(), nn.Linear(192, 5))
    assert gramian(model, loss, batch("mlp", 4)).k == 4


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_every_row_belongs_to_its_own_consecutive_samples(engine):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x

    def values(model: nn.Module, x: Any) -> Tensor:
        return model(x).squeeze(1)

    data = torch.arange(12.0)[:, None]
    rows = microbatch_gradients(Sum(), values, data, 4, engine=engine)
    assert rows.named["weight"].flatten().tolist() == [1, 4, 7, 10]
    assert microbatch_gradients(
        Sum(), values, data, engine=engine
    ).flat().flatten().tolist() == list(range(12))
