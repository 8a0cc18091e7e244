"""The ghost engine looks at a model once, and keeps nothing of it alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gradient_cases import batch, loss, make
from torch import Tensor, nn

from gafscope.gradients import gramian
from gafscope.gradients.ghost import engine as ghost_engine
from gafscope.gradients.weighted import weighted_gradient


class Counted:
    """A loss that counts its calls, in a list, since a number would be taken for a setting."""

    def __init__(self):
        self._calls: list[None] = []

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self._calls.append(None)
        return loss(model, batch)

    @property
    def calls(self) -> int:
        return len(self._calls)

    def count(self, work: Callable[[], Any]) -> int:
        before = self.calls
        work()
        return self.calls - before


@pytest.mark.parametrize("engine", ["ghost", "auto"])
@pytest.mark.parametrize("name", ["mlp", "cnn-group", "vit", "gpt"])
def test_the_second_measurement_is_one_pass(name, engine):
    model, counted = make(name, torch.float64), Counted()

    def measure(n: int = 6, k: int | None = None, **options: Any) -> Callable[[], Any]:
        data = batch(name, n, torch.float64)
        return lambda: gramian(model, counted, data, k, engine=engine, **options)

    assert counted.count(measure()) > 1
    assert counted.count(measure()) == 1
    # A number of samples or microbatches that is new is only compared with losses of
    # microbatches alone, and two rows.
    for settings, k in (({"n": 8}, 8), ({"n": 8, "k": 4}, 4), ({"n": 12, "k": 4}, 4)):
        assert counted.count(measure(**settings)) == 1 + k + 2
        assert counted.count(measure(**settings)) == 1
    assert counted.count(measure(precision="float64")) == 1
    assert counted.count(measure(layers=False)) == 1
    assert counted.count(measure(seed=4)) == 1
    model.eval()
    assert counted.count(measure()) > 1
    assert counted.count(measure()) == 1
    model.train()
    assert counted.count(measure()) == 1


def test_training_does_not_ask_for_another_plan():
    model, counted, data = make("cnn-group"), Counted(), batch("cnn-group", 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    weights = torch.full((6,), 1 / 6, dtype=torch.float64)
    calls = []
    for _ in range(3):
        before = counted.calls
        found = weighted_gradient(model, counted, data, lambda _: weights, engine="ghost")
        calls.append(counted.calls - before)
        for name, p in model.named_parameters():
            p.grad = found.named[name]
        optimizer.step()
    assert calls[1:] == [1, 1]


@pytest.fixture
def collected() -> Iterator[None]:
    """Reference counts alone would not free what a test left in cycles before."""
    gc.collect()
    yield
    gc.collect()


class Cut(Exception):
    """What a test raises."""


def hooked(model: nn.Module, where: str, raised: type[BaseException]) -> None:
    """Let the model's first layer raise in its forward or backward pass."""

    def fail(*_: Any) -> None:
        raise raised

    def fail_later(module: nn.Module, args: Any, out: Tensor) -> None:
        out.register_hook(fail)

    layer = next(m for m in model.modules() if list(m.parameters(recurse=False)))
    layer.register_forward_hook(fail if where == "forward" else fail_later)


def unhooked(model: nn.Module) -> None:
    for module in model.modules():
        module._forward_hooks.clear()


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("where", ["nowhere", "forward", "backward"])
@pytest.mark.parametrize("name", ["mlp", "cnn-group", "gpt"])
def test_models_are_not_kept_alive(name, where):
    model, data = make(name), batch(name, 6)
    gone = [weakref.ref(model), *(weakref.ref(p) for p in model.parameters())]
    if where == "nowhere":
        gramian(model, loss, data, engine="ghost")
        weighted_gradient(model, loss, data, lambda _: torch.ones(6).double(), engine="ghost")
    else:
        for known in (False, True):
            if known:
                gramian(model, loss, data, engine="ghost")
            hooked(model, where, Cut)
            with pytest.raises(Cut):
                gramian(model, loss, data, engine="ghost")
            unhooked(model)
    del model
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)


@pytest.mark.usefixtures("collected")
def test_losses_are_not_kept_alive():
    model, data = make("mlp"), batch("mlp", 6)
    gone = []
    for _ in range(40):
        counted = Counted()
        gone.append(weakref.ref(counted))
        gramian(model, counted, data, engine="ghost")
        del counted
    gc.collect()
    assert [ref() for ref in gone] == [None] * 40
    assert len(ghost_engine._KNOWN[model]) <= ghost_engine._KNOWN_A_MODEL


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize(("name", "failing"), [("cnn-group", True), ("gpt", False)])
def test_memory_does_not_grow(name, failing):
    model, data = make(name), batch(name, 6)
    weights = torch.ones(6, dtype=torch.float64)

    def call() -> None:
        gramian(model, loss, data, engine="ghost")
        weighted_gradient(model, loss, data, lambda _: weights, engine="ghost")
        if failing:
            hooked(model, "backward", Cut)
            with pytest.raises(Cut):
                gramian(model, loss, data, engine="ghost")
            unhooked(model)

    call()
    before = tensors_alive()
    for _ in range(20):
        call()
    assert tensors_alive() <= before


@pytest.mark.usefixtures("collected")
def test_a_result_keeps_no_activations():
    # Nothing but the result may be alive, also before cycles are collected.
    model, data = make("cnn-group"), batch("cnn-group", 6)
    gramian(model, loss, data, engine="ghost")
    seen: list[weakref.ref[Tensor]] = []
    for module in model.modules():
        module.register_forward_hook(lambda m, args, out: seen.append(weakref.ref(out)))
    gc.disable()
    try:
        found = gramian(model, loss, data, engine="ghost")
        assert seen
        assert [ref() for ref in seen] == [None] * len(seen)
    finally:
        gc.enable()
    assert found.matrix.isfinite().all()


def test_two_threads():
    name, before = "cnn-group", torch.get_num_threads()
    model, data = make(name, torch.float64), batch(name, 12, torch.float64)
    expected = gramian(model, loss, data, engine="loop")
    torch.set_num_threads(2)
    try:
        found = gramian(model, loss, data, engine="ghost")
        again = gramian(model, loss, data, engine="ghost")
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.matrix, expected.matrix, rtol=1e-10, atol=1e-14)
    assert torch.equal(found.matrix, again.matrix)
    assert found.engine == "ghost"
