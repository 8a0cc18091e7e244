"""Loops and settings that memory="ghost" cannot take, and that of `split` beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from watched_loops import batches, network, same, sgd, state_of, train

from gafscope.aggregation import GAF
from gafscope.errors import UserError
from gafscope.instruments import watch

K, U = 4, 3


@pytest.mark.parametrize("options", [{"memory": "ghost"}, {"split": "samples"}])
def test_a_backward_after_the_watch_has_stopped(options):
    model, bare = network(), network()
    inputs, labels = batches(1, 1)[0][0]
    scope = watch(model, sgd(model), **options)
    scope.start()
    loss = nn.functional.cross_entropy(model(inputs), labels)
    scope.stop()
    loss.backward()
    nn.functional.cross_entropy(bare(inputs), labels).backward()
    for found, right in zip(model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(found.grad, right.grad, rtol=0, atol=0)


def loop_with(model, make_losses, **options):
    optimizer = sgd(model)
    with watch(model, optimizer, **options):
        for _ in range(3):
            make_losses(model)
        optimizer.step()


INPUTS, LABELS = batches(1, 1)[0][0]


def plain(model):
    return nn.functional.cross_entropy(model(INPUTS), LABELS)


def penalised(model):
    (plain(model) + sum(p.square().sum() for p in model.parameters())).backward()


def bypassed(model):
    nn.functional.cross_entropy(model[2](model[1](model[0](INPUTS))), LABELS).backward()


def called_twice(model):
    (plain(model) + model(INPUTS).square().mean()).backward()


def two_calls_two_backwards(model):
    first, second = plain(model), model(INPUTS).square().mean()
    first.backward()
    second.backward()


def graph_used_twice(model):
    loss = plain(model)
    torch.autograd.grad(loss, [*model.parameters()], retain_graph=True)
    loss.backward()


def one_call_two_backwards(model):
    loss = plain(model)
    loss.backward(retain_graph=True)
    loss.backward()


@pytest.mark.parametrize(
    ("make", "losses", "message"),
    [
        (network, penalised, r"backward 1 of this step.*penalty.*memory='bf16'"),
        (network, bypassed, "call the Sequential itself.*once for each backward"),
        (network, called_twice, "one call of the model before each backward.*memory='bf16'"),
        (network, two_calls_two_backwards, "one call of the model before each backward"),
        (network, graph_used_twice, "one pass backwards.*autograd.grad included"),
        (network, one_call_two_backwards, "one pass backwards"),
        (lambda: network(norm=True), lambda m: plain(m).backward(), r"'1' \(BatchNorm1d.*bf16"),
    ],
)
def test_loops_that_it_cannot_take(make, losses, message):
    model = make()
    with pytest.raises(UserError, match=message):
        loop_with(model, losses, memory="ghost")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize("losses", [called_twice, graph_used_twice])
def test_split_says_the_same(losses):
    with pytest.raises(UserError, match=r"split takes one .*accumulate microbatches"):
        loop_with(network(), losses, split="samples")


def test_a_buffer_that_is_filled_anew():
    model = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(12, 3))
    buffer = torch.empty(U, 3, dtype=torch.long)

    def refilled(model):
        model(buffer.copy_(torch.randperm(9).view(U, 3))).square().mean().backward()

    with pytest.raises(UserError, match=r"overwritten before it.*memory='bf16'"):
        loop_with(model, refilled, memory="ghost")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (network, {"filter": GAF()}, "filter.*memory='ghost'.*use memory='bf16'"),
        (network, {"split": "samples"}, "leave memory out"),
        (lambda: torch.compile(network(), backend="eager"), {}, "ghost.*compiled.*memory='bf16'"),
        (lambda: nn.LSTM(3, 4), {}, "ghost.*would unroll.*memory='bf16'"),
    ],
)
def test_settings_that_do_not_go_with_it(make, options, message):
    model = make()
    with pytest.raises(UserError, match=message):
        watch(model, sgd(model), memory="ghost", **options)


def test_an_unknown_memory_is_named():
    with pytest.raises(UserError, match="'ghost'"):
        watch(network(), sgd(network()), memory="gost")


def test_a_wrong_number_of_microbatches_and_the_whole_loop():
    data = batches(3, K, u=U)
    model, bare = network(), network()
    optimizer, bare_optimizer = sgd(model), sgd(bare)
    train(bare, bare_optimizer, data, clip=0.1)
    with watch(model, optimizer, every=1, memory="ghost", microbatches=K) as scope:
        train(model, optimizer, data, clip=0.1, scope=scope)
    assert same(state_of(bare, bare_optimizer), state_of(model, optimizer))
    assert scope.run.recorded_steps == [0, 1, 2]
    with (
        pytest.raises(UserError, match="microbatches=3"),
        watch(model, optimizer, every=1, memory="ghost", microbatches=3),
    ):
        train(model, optimizer, data)


@pytest.mark.parametrize("options", [{"memory": "ghost"}, {"split": "samples"}])
def test_a_path_that_changes_by_chance_is_named(options):
    class Wanders(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()
            self.calls = [0]

        def forward(self, inputs):
            self.calls[0] += 1
            twice = self.calls[0] > 40  # the first look at the model is over by then
            hidden = self.layers[0](inputs)
            return self.layers[2](
                self.layers[1](hidden + self.layers[0](inputs) * twice if twice else hidden)
            )

    model = Wanders()
    optimizer = sgd(model)
    with (
        pytest.raises(UserError, match="another path"),
        watch(model, optimizer, every=1, **options),
    ):
        for _ in range(60):
            plain(model).backward()
            if "split" not in options:
                plain(model).backward()
            optimizer.step()
            optimizer.zero_grad()
