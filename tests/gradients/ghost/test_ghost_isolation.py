"""The model is left as found, whatever happens inside the measurement."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import ghost_cases
import pytest
import torch
from ghost_cases import assert_same, check_right_or_refused, make, normal, waves
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from gafscope.errors import UserError
from gafscope.gradients import Gramian, gramian

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4).eval()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4 * 16, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.head(self.drop(self.norm(self.conv(x)).relu()).flatten(1))


def with_a_past() -> nn.Module:
    model = make(Net)
    model.conv.weight.grad = torch.full_like(model.conv.weight, 3.0)
    model.head.bias.requires_grad_(False)
    model.conv.weight.register_hook(lambda gradient: None)
    model.conv.register_forward_hook(lambda *_: None)
    model.norm.register_forward_pre_hook(lambda *_: None)
    model.head.register_full_backward_hook(lambda *_: None)
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    hooks = [
        {name: list(getattr(module, name)) for name in HOOKS}
        | {"tensor": [list(p._backward_hooks or ()) for p in module.parameters(recurse=False)]}
        for module in model.modules()
    ]
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "objects": {name: id(tensor) for name, tensor in tensors.items()},
        "versions": {name: p._version for name, p in model.named_parameters()},
        "gradients": {
            name: None if p.grad is None else (id(p.grad), p.grad.clone())
            for name, p in model.named_parameters()
        },
        "trainable": {name: t.requires_grad for name, t in tensors.items()},
        "graphs": {name: t.grad_fn for name, t in tensors.items()},
        "modes": [module.training for module in model.modules()],
        "hooks": hooks,
        "attributes": [set(vars(module)) for module in model.modules()],
        "attributes of parameters": [set(vars(p)) for p in model.parameters()],
        "classes": [type(module) for module in model.modules()],
        "forwards": [module.forward.__func__ for module in model.modules()],
        "random state": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "function modes": _get_current_function_mode_stack(),
        "dispatch modes": _get_current_dispatch_mode_stack(),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "saved tensor hooks": torch._C._autograd._saved_tensors_hooks_is_enabled(),
        "global hooks": [
            len(getattr(global_hooks, name))
            for name in vars(global_hooks)
            if "_hooks" in name and isinstance(getattr(global_hooks, name), dict)
        ],
    }


def assert_as_before(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    for name, value in before.items():
        assert str(after[name]) == str(value), f"{name} changed"
    for name, tensor in before["values"].items():
        assert torch.equal(after["values"][name], tensor), f"{name} changed"


def measure(model: nn.Module, batch: Any, loss: Any = waves, **options: Any) -> Gramian:
    return gramian(model, loss, batch, engine=ghost_cases.ENGINE, **options)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"microbatches": 2}, {"layers": False}, {"seed": 3}])
def test_nothing_is_left_behind(training, options):
    model, batch = with_a_past(), normal(3, 6, 6)(6)
    model.drop.train(training)
    before = snapshot(model)
    for _ in range(2):
        measure(model, batch, **options)
        assert_as_before(model, before)


class Bomb:
    """A loss that fails at one of its calls, in the forward or in the backward pass."""

    def __init__(self, call: int, error: type[BaseException], where: str):
        self.call, self.error, self.where = call, error, where
        self.calls = 0

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        self.calls += 1
        if self.calls < self.call:
            return waves(model, batch)
        if self.where == "before":
            raise self.error("boom")
        if self.where == "forward":
            handle = model.head.register_forward_hook(self.explode)
            try:
                return waves(model, batch)
            finally:
                handle.remove()
        losses = waves(model, batch)
        if self.where == "after":
            model.train()
            raise self.error("boom")
        losses.register_hook(self.explode)
        return losses

    def explode(self, *_: Any) -> None:
        raise self.error("boom")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["before", "forward", "after", "backward"])
@pytest.mark.parametrize("call", [1, 4, 6, 9])
def test_nothing_is_left_behind_by_an_error(error, where, call):
    model, batch = with_a_past(), normal(3, 6, 6)(6)
    before = snapshot(model)
    bomb = Bomb(call, error, where)
    try:
        measure(model, batch, bomb)
    except (ValueError, RuntimeError, KeyboardInterrupt) as caught:
        assert isinstance(caught, (error, UserError))
        if error is KeyboardInterrupt:
            assert isinstance(caught, KeyboardInterrupt)
    else:
        assert bomb.calls < call or error is not KeyboardInterrupt
    assert_as_before(model, before)
    # The next measurement is right: nothing wrong was remembered.
    assert_same(measure(model.eval(), batch), gramian(model, waves, batch, engine="loop"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind_when_the_users_own_backward_hook_fails(error):
    model, batch = with_a_past(), normal(3, 6, 6)(6)
    model.eval()

    def explode(*_: Any) -> None:
        raise error("boom")

    for register in (model.norm.register_full_backward_hook, model.head.weight.register_hook):
        handle = register(explode)
        before = snapshot(model)
        with pytest.raises((error, UserError)) as caught:
            measure(model, batch)
        assert isinstance(caught.value, error) or error is ValueError
        assert_as_before(model, before)
        handle.remove()
    assert_same(measure(model, batch), gramian(model, waves, batch, engine="loop"))


def test_the_users_hooks_are_called_and_may_change_outputs():
    model, batch = make(Net).eval(), normal(3, 6, 6)(6)
    called = []
    model.head.register_forward_pre_hook(lambda *_: called.append("pre"))
    model.conv.register_forward_hook(lambda module, args, output: output.sin())
    model.norm.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    check_right_or_refused(model, batch)
    assert called


def test_hooks_that_change_gradients_are_right_or_refused():
    batch = normal(3, 6, 6)(6)
    model = make(Net).eval()
    model.conv.weight.register_hook(lambda gradient: 2 * gradient)
    check_right_or_refused(model, batch)
    model = make(Net).eval()
    model.norm.register_full_backward_hook(lambda module, inputs, outputs: (3 * inputs[0],))
    check_right_or_refused(model, batch)
    model = make(Net).eval()
    model.conv.register_forward_hook(
        lambda module, args, output: output.register_hook(lambda gradient: 3 * gradient) and None
    )
    check_right_or_refused(model, batch)


def test_no_gradient_is_accumulated():
    model, batch = make(Net).eval(), normal(3, 6, 6)(6)
    accumulated = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: accumulated.append(1))
    batch.requires_grad_()
    measure(model, batch)
    assert not accumulated
    assert batch.grad is None
    assert all(p.grad is None for p in model.parameters())


def test_under_no_grad_and_set_grad_enabled():
    model, batch = make(Net).eval(), normal(3, 6, 6)(6)
    expected = gramian(model, waves, batch, engine="loop")
    with torch.no_grad():
        assert_same(measure(model, batch), expected)
        assert not torch.is_grad_enabled()
    copied = copy.deepcopy(model)
    with torch.set_grad_enabled(False):
        assert_same(measure(copied, batch), expected)


def test_inference_tensors_are_right_or_an_error():
    model = make(Net).eval()
    with torch.inference_mode():
        batch = normal(3, 6, 6)(6)
    expected = gramian(model, waves, normal(3, 6, 6)(6), engine="loop")
    try:
        found = measure(model, batch)
    except (UserError, RuntimeError) as error:
        assert "nference" in str(error)
    else:
        assert_same(found, expected)


def test_the_batch_is_left_as_found():
    model, batch = make(Net).eval(), normal(3, 6, 6)(6)
    kept, version = batch.clone(), batch._version
    measure(model, batch)
    assert torch.equal(batch, kept)
    assert batch._version == version
    assert not batch.requires_grad
    assert not batch._backward_hooks


def test_a_model_that_was_measured_can_be_copied_pickled_and_forgotten():
    model, batch = make(Net).eval(), normal(3, 6, 6)(6)
    found = measure(model, batch)
    twin = copy.deepcopy(model)
    assert_same(measure(twin, batch), found)
    assert_same(measure(pickle.loads(pickle.dumps(model)), batch), found)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_no_activation_outlives_the_measurement():
    model, batch = make(Net).eval(), normal(3, 6, 6)(6)
    seen: list[weakref.ref[Tensor]] = []
    model.conv.register_forward_hook(lambda module, args, out: seen.append(weakref.ref(out)))
    model.head.register_forward_pre_hook(lambda module, args: seen.append(weakref.ref(args[0])))
    for _ in range(2):
        measure(model, batch)
    gc.collect()
    assert seen
    assert not [1 for reference in seen if reference() is not None]


def test_an_earlier_graph_can_still_be_differentiated():
    model, batch = make(Net).eval(), normal(3, 6, 6)(6)
    value = waves(model, batch).mean()
    expected = torch.autograd.grad(value, model.conv.weight, retain_graph=True)[0]
    measure(model, batch)
    assert torch.equal(torch.autograd.grad(value, model.conv.weight)[0], expected)
