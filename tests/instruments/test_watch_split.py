"""Loops of one backward a step: the samples' Gramian from the loop's own forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from watched_loops import batches, network, same, sgd, state_of, train

from gafscope.aggregation import GAF
from gafscope.errors import UserError
from gafscope.gradients import gramian, supervised
from gafscope.instruments import watch
from gafscope.models import cnn, gpt

LOSS = supervised(nn.functional.cross_entropy)


def assert_same_gramian(found, right):
    right = np.asarray(right)
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * right.max())


@pytest.mark.parametrize("split", ["samples", 4])
def test_the_gramians_are_those_of_gramian_on_the_loops_scale(split):
    data, k = batches(3, 1), 8 if split == "samples" else 4
    bare, model = network(), network()
    bare_optimizer, optimizer = sgd(bare), sgd(model)
    with watch(model, optimizer, every=1, split=split) as scope:
        for step, parts in enumerate(data):
            right = gramian(bare, LOSS, parts[0], microbatches=k, engine="loop")
            train(bare, bare_optimizer, [parts])
            train(model, optimizer, [parts])
            assert_same_gramian(scope.run.matrix(step), right.matrix / k**2)
            for name, layer in right.layers.items():
                assert_same_gramian(scope.run.matrix(step, name), layer / k**2)
    assert same(state_of(bare, bare_optimizer), state_of(model, optimizer))


def images():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(6, 3, 16, 16, generator=generator)
    return (
        lambda: cnn(num_classes=4, in_channels=3),
        lambda model: model(inputs),
        torch.arange(6) % 4,
    )


def language():
    tokens = torch.randint(20, (5, 9), generator=torch.Generator().manual_seed(1))

    def make():
        return gpt(20, context=8, dim=16, depth=2, heads=2, dropout=0.3, tie_weights=True)

    return make, lambda model: model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()


@pytest.mark.parametrize("case", [images, language])
def test_weights_and_random_numbers_are_bit_identical_with_and_without(case):
    make, forward, targets = case()
    results = []
    for split in (None, "samples"):
        torch.manual_seed(3)
        model = make()
        optimizer = sgd(model)
        scope = watch(model, optimizer, every=2, split=split) if split else None
        if scope:
            scope.start()
        for _ in range(3):
            nn.functional.cross_entropy(forward(model), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        if scope:
            scope.stop()
            assert scope.run.recorded_steps == [0, 2]
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        results.append((state_of(model, optimizer), torch.rand(3)))
    assert same(results[0], results[1])


def test_dropout_masks_are_the_loops_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1))
    optimizer = sgd(model)
    inputs = torch.randn(6, 4)
    with watch(model, optimizer, split="samples") as scope:
        model(inputs).mean().backward()
        grads = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    # All rows add up to the loop's gradient, under the very masks that it drew.
    square = sum(float(g.double().square().sum()) for g in grads)
    assert scope.run.matrix(0).sum() == pytest.approx(square, rel=1e-5)


def test_a_model_that_returns_its_own_loss():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, inputs, labels=None):
            logits = self.inner(inputs)
            return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    model = Model()
    optimizer = sgd(model)
    inputs, labels = batches(1, 1)[0][0]
    right = gramian(model.inner, LOSS, (inputs, labels), engine="loop")
    with watch(model, optimizer, split="samples") as scope:
        model(inputs, labels=labels)["loss"].backward()
        optimizer.step()
    assert_same_gramian(scope.run.matrix(0), right.matrix / 64)


def test_validation_in_between_and_a_batch_of_one_sample_change_nothing():
    model = network()
    optimizer = sgd(model)
    inputs, labels = batches(1, 1)[0][0]
    with watch(model, optimizer, split="samples", every=1) as scope:
        for n in (8, 1, 5):
            loss = nn.functional.cross_entropy(model(inputs[:n]), labels[:n])
            with torch.no_grad():
                model(inputs[:3])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    run = scope.run
    assert run.recorded_steps == [0, 2]
    assert [len(run.matrix(step)) for step in (0, 2)] == [8, 5]


class Derived(nn.Module):
    """Uses tensors made of its parameters alone, several steps deep and in overlapping parts."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(9, 5)
        self.length, self.direction = nn.Parameter(torch.rand(4)), nn.Parameter(torch.randn(4, 5))

    def forward(self, x):
        places = self.positions(torch.tensor([0, 3, 3, 8])).exp()
        weight = self.length[:, None] * self.direction / self.direction.norm(dim=1, keepdim=True)
        hidden = (x[:, None] + places).tanh().mean(1)
        return hidden @ weight.T + (hidden[:, :4] * weight[:, 1]).square()


def test_tensors_made_of_parameters_alone_outlive_the_loops_backward():
    torch.manual_seed(0)
    model = Derived()
    optimizer = sgd(model)
    x, targets = torch.randn(6, 5), torch.arange(6) % 4
    with watch(model, optimizer, every=1, split="samples") as scope:
        for step in range(2):
            right = gramian(model, LOSS, (x, targets), engine="loop")
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), targets).backward()
            optimizer.step()
            assert_same_gramian(scope.run.matrix(step), right.matrix / 36)
            for name, layer in right.layers.items():
                assert_same_gramian(scope.run.matrix(step, name), layer / 36)


def test_an_exception_in_the_forward_leaves_nothing():
    model = network()
    optimizer = sgd(model)
    with pytest.raises(RuntimeError), watch(model, optimizer, split="samples"):
        model(torch.zeros(4, 99))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.overrides._get_current_function_mode() is None


def loop_with(model, optimizer, make_loss, **options):
    with watch(model, optimizer, **{"split": "samples", **options}):
        make_loss(model).backward()
        optimizer.step()


def test_what_split_cannot_take():
    inputs, labels = batches(1, 1)[0][0]

    def plain(model):
        return nn.functional.cross_entropy(model(inputs), labels)

    def penalised(model):
        return plain(model) + sum(p.square().sum() for p in model.parameters())

    def bypassed(model):
        return nn.functional.cross_entropy(model[2](model[1](model[0](inputs))), labels)

    class Contrastive(nn.Sequential):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            return outputs - outputs.mean(0)

    coupled = Contrastive(*network())
    cases = [
        (coupled, plain, {}, "since its samples depend on each other"),
        (network(norm=True), plain, {}, r"'1' \(BatchNorm1d in training mode\)"),
        (network(), penalised, {}, "does not come from the watched call"),
        (network(), bypassed, {}, "call the Sequential itself"),
        (network(), plain, {"split": 3}, r"split=3 must divide.*8 samples"),
    ]
    for model, make_loss, options, message in cases:
        with pytest.raises(UserError, match=message):
            loop_with(model, sgd(model), make_loss, **options)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_several_backwards_a_step():
    model = network()
    optimizer = sgd(model)
    with (
        pytest.raises(UserError, match="this one makes several"),
        watch(model, optimizer, split="samples"),
    ):
        train(model, optimizer, batches(1, 2))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network(), {"split": 1}, "at least 2"),
        (network(), {"split": "rows"}, "split must be"),
        (network(), {"split": 4, "filter": GAF()}, "per_sample_step"),
        (network(), {"split": 4, "microbatches": 4}, "give one of them"),
        (torch.compile(network(), backend="eager"), {}, "compiled model"),
        (nn.LSTM(3, 4), {}, "would unroll"),
    ],
)
def test_settings_that_do_not_go_with_split(model, options, message):
    with pytest.raises(UserError, match=message):
        watch(model, sgd(model), **{"split": "samples", **options})
