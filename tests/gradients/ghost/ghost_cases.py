"""The ghost engine's tests: random models and batches in float64, and the comparison with loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gafscope.errors import UserError
from gafscope.gradients import Gramian, gramian

ENGINE = "ghost"
Case = tuple[Callable[[], nn.Module], Callable[[int], Any]]


def make(factory: Callable[[], nn.Module]) -> nn.Module:
    """A model in float64 whose norms, biases and running statistics are not what torch starts with.

    Weight 1 and bias 0 would hide a factor that was forgotten.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = factory().double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.2)
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(torch.randn_like(buffer), alpha=0.3)
                elif name.endswith("running_var"):
                    buffer.mul_(0.5 + torch.rand_like(buffer))
    return model


def normal(*shape: int) -> Callable[[int], Tensor]:
    """Give n -> (n, *shape) normal numbers."""

    def draw(n: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    return draw


def tokens(count: int, *shape: int) -> Callable[[int], Tensor]:
    """Give n -> (n, *shape) indices under `count`."""

    def draw(n: int) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.randint(count, (n, *shape), generator=generator)

    return draw


def waves(model: Callable[..., Any], batch: Any) -> Tensor:
    """A nonlinear loss in which every output of a sample weighs differently."""
    outputs = model(batch)
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    flat = outputs.reshape(len(outputs), -1)
    return (flat * torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)).sin().mean(1)


def assert_same(found: Gramian, expected: Gramian, tolerance: float = 1e-9) -> None:
    """Compare two Gramians, layer by layer and whole, over the largest entry of each."""
    assert list(found.layers) == list(expected.layers)
    largest = _largest(expected.matrix)
    for layer in (*expected.layers, None):
        matrix, wanted = found.of(layer), expected.of(layer)
        assert matrix.dtype == torch.float64
        assert torch.equal(matrix.isfinite(), wanted.isfinite()), f"{layer}: not finite elsewhere"
        # A gradient that is zero but for rounding (a key's bias) has no digits to compare.
        scale = max(_largest(wanted), 1e-15 * largest)
        error = _largest(matrix - wanted)
        assert error <= tolerance * scale, (
            f"{layer or 'whole model'}: {error / max(scale, 1e-300):.2e} off\n{matrix}\n{wanted}"
        )


def check(
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any, Any], Tensor] = waves,
    *,
    microbatches: tuple[int | None, ...] | None = None,
    tolerance: float = 1e-9,
) -> None:
    """Ghost = loop, per sample and with microbatches, and nothing fell back to another engine."""
    n = len(pytree.tree_leaves(batch)[0])
    if microbatches is None:
        microbatches = (None, n // 3) if n % 3 == 0 else (None, n // 2) if n % 2 == 0 else (None,)
    for k in microbatches:
        found = gramian(model, loss, batch, k, engine=ENGINE)
        assert found.engine == ENGINE
        assert_same(found, gramian(model, loss, batch, k, engine="loop"), tolerance)


def check_right_or_refused(
    model: nn.Module, batch: Any, loss: Callable[[Any, Any], Tensor] = waves, k: int | None = None
) -> None:
    """Ghost is right, or it is an error by name and "auto" is right with another engine."""
    expected = gramian(model, loss, batch, k, engine="loop")
    refused = False
    try:
        found = gramian(model, loss, batch, k, engine=ENGINE)
    except UserError as error:
        refused = True
        assert len(str(error)) < 600
    else:
        assert_same(found, expected)
    if refused:
        chosen = gramian(model, loss, batch, k, engine="auto")
        assert_same(chosen, expected)
        assert chosen.engine != ENGINE
        # One microbatch of everything is the loop's anyway.
        assert chosen.notes or k == 1


def check_refused(model: nn.Module, batch: Any, loss: Callable[[Any, Any], Tensor] = waves) -> None:
    """An error by name; with "auto" the same error, or a note that another engine did it."""
    with pytest.raises(UserError) as error:
        gramian(model, loss, batch, engine=ENGINE)
    assert len(str(error.value)) < 600
    try:
        found = gramian(model, loss, batch, engine="auto")
    except UserError as refusal:
        assert "samples of this batch depend on each other" in str(refusal)
    else:
        assert_same(found, gramian(model, loss, batch, engine="loop"))
        assert found.engine != ENGINE
        assert found.notes


def _largest(matrix: Tensor) -> float:
    finite = matrix[matrix.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
