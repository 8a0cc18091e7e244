"""What a loss may return, and what a batch may be made of, with every engine."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradient_cases import batch, loss, make, plain_rows, relative
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.gradients import gramian, microbatch_gradients, supervised

every_engine = pytest.mark.parametrize("engine", ["loop", "vmap"])
Pair = namedtuple("Pair", ["inputs", "targets"])


def measured(model: nn.Module, loss: Any, data: Any, k: int | None, engine: str) -> float:
    rows = microbatch_gradients(model, loss, data, k, engine=engine)
    return relative(rows.named, plain_rows(model, loss, data, rows.k))


@every_engine
@pytest.mark.parametrize("k", [3, 12])
def test_the_mean_as_a_scalar_does_as_well_as_one_loss_a_sample(engine, k):
    model, data = make("mlp", torch.float64), batch("mlp", 12, torch.float64)
    expected = plain_rows(model, loss, data, k)
    rows = microbatch_gradients(model, lambda m, b: loss(m, b).mean(), data, k, engine=engine)
    assert relative(rows.named, expected) < 1e-10


@every_engine
@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(ignore_index=2),
        F.cross_entropy,
        nn.CrossEntropyLoss(weight=torch.arange(11.0).double(), label_smoothing=0.1),
    ],
)
@pytest.mark.parametrize("k", [2, 6])
def test_tokens_some_of_which_are_ignored(engine, criterion, k):
    model, (tokens, targets) = make("gpt", torch.float64), batch("gpt", 6)
    targets[0, :2] = targets[3] = getattr(criterion, "ignore_index", -100)
    assert measured(model, supervised(criterion), (tokens, targets), 2, engine) < 1e-10
    rows = microbatch_gradients(model, supervised(criterion), (tokens, targets), engine=engine)
    assert not rows.flat()[3].any()
    assert rows.flat()[[0, 1, 2, 4, 5]].any(1).all()


@every_engine
@pytest.mark.parametrize(
    ("criterion", "targets"),
    [
        (nn.MSELoss(), torch.randn(6, 5, dtype=torch.float64)),
        (lambda o, t: (o - t).square(), torch.randn(6, 5, dtype=torch.float64)),
        (F.cross_entropy, torch.rand(6, 5, dtype=torch.float64).softmax(1)),
        (F.huber_loss, torch.randn(6, 5, dtype=torch.float64)),
    ],
    ids=["mse", "by hand", "soft", "huber"],
)
@pytest.mark.parametrize("k", [2, 6])
def test_other_targets(engine, criterion, targets, k):
    data = batch("mlp", 6, torch.float64)[0], targets
    assert measured(make("mlp", torch.float64), supervised(criterion), data, k, engine) < 1e-10


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2).double()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.linear(left) * self.linear(right)


def two_inputs_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    outputs = model(batch["inputs"]["left"], right=batch["inputs"]["others"][0])
    return (outputs.sum(1) * batch["weight"]).square()


@every_engine
@pytest.mark.parametrize("k", [2, 8])
def test_nested_batches(engine, k):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 8, 3, dtype=torch.float64, generator=generator)
    data = {"inputs": {"left": left, "others": [right]}, "weight": torch.arange(1, 9)}
    assert measured(TwoInputs(), two_inputs_loss, data, k, engine) < 1e-10


@every_engine
def test_lists_and_named_pairs_are_batches_too(engine):
    model, data = make("mlp"), batch("mlp", 6)
    expected = microbatch_gradients(model, loss, data, 2, engine=engine).flat()
    for same in (list(data), Pair(*data)):
        found = microbatch_gradients(model, loss, same, 2, engine=engine).flat()
        assert torch.equal(found, expected)


@every_engine
def test_a_loss_that_is_a_module_with_weights_of_its_own(engine):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))

        def forward(self, model: nn.Module, batch: Any) -> Tensor:
            return loss(model, batch) * self.scale

    model, data = make("mlp"), batch("mlp", 6)
    criterion = Weighted()
    rows = microbatch_gradients(model, criterion, data, 2, engine=engine)
    assert list(rows.named) == [name for name, _ in model.named_parameters()]
    plain = plain_rows(model, loss, data, 2)
    assert relative(rows.named, {name: 3 * row for name, row in plain.items()}) < 1e-5
    assert criterion.scale.grad is None


@every_engine
@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda losses: losses[:, None], r"\(4, 1\)"),
        (lambda losses: losses[None], r"\(1, 4\)"),
        (lambda losses: losses[1:], r"\(3,\)"),
        (lambda losses: losses.mean()[None], r"\(1,\)"),
        (lambda losses: losses.expand(4, 4), r"\(4, 4\)"),
        (lambda losses: [losses], "list"),
        (lambda losses: None, "NoneType"),
        (lambda losses: 0.5, "float"),
        (lambda losses: losses.long(), "int64"),
        (lambda losses: losses > 0, "bool"),
    ],
)
def test_a_loss_of_the_wrong_kind_is_an_error(engine, wrong, found):
    with pytest.raises(UserError, match=rf"\(4,\), or their mean.*{found}"):
        gramian(make("mlp"), lambda m, b: wrong(loss(m, b)), batch("mlp", 8), 2, engine=engine)


@every_engine
@pytest.mark.parametrize(
    "detached",
    [
        lambda m, b: loss(m, b).detach(),
        lambda m, b: torch.no_grad()(loss)(m, b),
        lambda m, b: b[0].flatten(1).sum(1),
        lambda m, b: torch.zeros(()),
    ],
    ids=["detach", "no_grad", "inputs only", "constant"],
)
def test_a_loss_that_depends_on_no_parameter_is_an_error(engine, detached):
    with pytest.raises(UserError, match="does not depend on any trainable parameter"):
        microbatch_gradients(make("mlp"), detached, batch("mlp", 8), 2, engine=engine)


@every_engine
def test_a_loss_that_depends_on_frozen_parameters_only_is_an_error(engine):
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1)})
    model["used"].requires_grad_(False)
    with pytest.raises(UserError, match="does not depend on any trainable parameter"):
        gramian(model, lambda m, x: m["used"](x).squeeze(1), torch.ones(4, 3), engine=engine)
