"""The captured rows are what autograd.grad gives, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from watched_loops import FEATURES, batches, network

from gafscope.errors import UserError
from gafscope.instruments.capture import Capture
from gafscope.models import gpt


def capture_of(model, rows):
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Capture(named, lambda: None, rows.append)


def assert_rows(rows, expected):
    assert len(rows) == len(expected)
    for row, right in zip(rows, expected, strict=True):
        for a, b in zip(row, right, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


def test_rows_of_a_language_model_with_tied_weights_and_frozen_parts():
    torch.manual_seed(0)
    model = gpt(20, context=8, dim=16, depth=2, heads=2, tie_weights=True)
    model.positions.weight.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    tokens = torch.randint(20, (4, 2, 9))

    def loss(part):
        return nn.functional.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())

    expected = [torch.autograd.grad(loss(part), trainable) for part in tokens]
    rows = []
    capture = capture_of(model, rows)
    for part in tokens:
        loss(part).backward()
    capture.close()
    assert_rows(rows, expected)
    total = sum(row[0] for row in expected)
    assert torch.allclose(trainable[0].grad, total)


def test_a_parameter_that_a_backward_does_not_reach_has_none():
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    rows = []
    capture = capture_of(model, rows)
    for i in (0, 1):
        model[i](torch.ones(3, 2)).sum().backward()
    capture.close()
    assert [[part is None for part in row] for row in rows] == [
        [False, False, True, True],
        [True, True, False, False],
    ]


def test_autograd_grad_is_not_training():
    model, rows = network(), []
    capture = capture_of(model, rows)
    inputs, labels = batches(1, 1)[0][0]
    for _ in range(2):
        torch.autograd.grad(model(inputs).sum(), list(model.parameters()))
    assert rows == []
    # A gradient penalty: autograd.grad inside a training loss.
    loss = nn.functional.cross_entropy(model(inputs), labels)
    inner = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    (loss + sum(g.square().sum() for g in inner)).backward()
    capture.close()
    assert len(rows) == 1
    assert_rows(rows, [[p.grad for p in model.parameters()]])


@pytest.mark.filterwarnings("ignore:Using backward")
def test_higher_order_gradients_are_captured_without_their_graph():
    model, rows = network(), []
    capture = capture_of(model, rows)
    inputs, labels = batches(1, 1)[0][0]
    nn.functional.cross_entropy(model(inputs), labels).backward(create_graph=True)
    capture.close()
    assert all(not part.requires_grad for part in rows[0])
    assert_rows(rows, [[p.grad.detach() for p in model.parameters()]])
    for p in model.parameters():
        p.grad = None


def test_a_backward_that_fails_half_way_leaves_nothing_behind():
    model, rows = network(), []
    capture = capture_of(model, rows)
    inputs, _ = batches(1, 1)[0][0]

    def fail(gradient):
        raise RuntimeError("half-way")

    handle = model[0].weight.register_hook(fail)
    with pytest.raises(RuntimeError, match="half-way"):
        model(inputs).sum().backward()
    handle.remove()
    assert rows == []
    model.zero_grad()
    model(inputs).sum().backward()
    capture.close()
    assert_rows(rows, [[p.grad for p in model.parameters()]])


def test_rows_do_not_share_memory_with_grad():
    model, rows = network(), []
    capture = capture_of(model, rows)
    for inputs, _ in batches(1, 2)[0]:
        model(inputs).sum().backward()
    before = [[part.clone() for part in row] for row in rows]
    for p in model.parameters():
        p.grad.zero_()
    capture.close()
    assert_rows(rows, before)


def test_checkpointing_without_reentry_is_captured_and_with_it_refused():
    model, rows = network(), []
    capture = capture_of(model, rows)
    inputs = torch.randn(4, FEATURES, requires_grad=True)
    checkpoint(model, inputs, use_reentrant=False).sum().backward()
    assert len(rows) == 1
    with pytest.raises(UserError, match="use_reentrant=False"):
        checkpoint(model, inputs, use_reentrant=True).sum().backward()
    capture.close()


def test_closing_takes_every_trace_away():
    model = network()
    capture_of(model, []).close()
    for p in model.parameters():
        assert p._backward_hooks is None
        assert p._post_accumulate_grad_hooks is None


def test_hooks_of_the_users_own_stay():
    model, seen = network(), []
    model[0].weight.register_hook(lambda gradient: seen.append("tensor"))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append("after"))
    capture_of(model, []).close()
    model(batches(1, 1)[0][0][0]).sum().backward()
    assert seen == ["tensor", "after"]


def test_a_sparse_gradient_is_named():
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True))
    capture = capture_of(model, [])
    with pytest.raises(UserError, match=r"'0\.weight' has sparse gradients"):
        model(torch.tensor([1, 2])).sum().backward()
    capture.close()


# The compiler leaves files for the garbage collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_compiled_model_gives_its_own_gradients():
    model = network()
    compiled = torch.compile(model, backend="aot_eager")
    inputs, labels = batches(1, 1)[0][0]
    expected = torch.autograd.grad(
        nn.functional.cross_entropy(compiled(inputs), labels), list(model.parameters())
    )
    rows = []
    capture = capture_of(model, rows)
    nn.functional.cross_entropy(compiled(inputs), labels).backward()
    capture.close()
    assert_rows(rows, [expected])
