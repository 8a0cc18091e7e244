"""How far the distances are from those of float64 gradients of the same model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import ghost_cases
import pytest
import torch
import torch.nn.functional as F
from ghost_cases import make, normal, tokens
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gafscope.errors import UserError
from gafscope.gradients import Gramian, gramian, supervised
from gafscope.models import cnn, gpt, mlp, resnet18, vit

loss = supervised(F.cross_entropy)
CLASSES, WORDS = 5, 11
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mlp": (lambda: mlp(192, (32,), CLASSES), 8),
    "cnn": (lambda: cnn(3, CLASSES, width=8, norm="group"), 16),
    "resnet": (lambda: resnet18(CLASSES, norm="group", width=8), 16),
    "vit": (lambda: vit(CLASSES, image_size=16, patch_size=4, dim=32, depth=2, heads=2), 16),
    "gpt": (lambda: gpt(WORDS, context=24, dim=32, depth=2, heads=2), 0),
}


def case(name: str, n: int) -> tuple[nn.Module, Any]:
    factory, size = MODELS[name]
    model = make(factory).float()
    if name == "gpt":
        words = tokens(WORDS, 21)(n)
        return model, (words[:, :-1].clone(), words[:, 1:].clone())
    return model, (normal(3, size, size)(n).float(), tokens(CLASSES)(n))


def reference(model: nn.Module, batch: Any) -> Gramian:
    doubled = pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, batch)
    return gramian(copy.deepcopy(model).double(), loss, doubled, engine="loop")


def ghost(model: nn.Module, batch: Any, precision: str | None = None) -> Gramian:
    options: dict[str, Any] = {} if precision is None else {"precision": precision}
    return gramian(model, loss, batch, engine=ghost_cases.ENGINE, **options)


def error(found: Gramian, expected: Gramian) -> float:
    return float((found.cosine_distance() - expected.cosine_distance()).abs().max())


def smooth(model: nn.Module) -> nn.Module:
    """Without kinks, at which gradients jump, so that near samples have near gradients."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return model


def nearly_equal(model: nn.Module, batch: Any, distance: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Sample 0, and three copies of it moved until the first is about `distance` away."""
    images = batch[0][:1].double().repeat(4, 1, 1, 1)
    step = normal(*images.shape[1:])(4)
    step[0] = 0
    targets = batch[1][:1].repeat(4)
    low, high = 1e-8, 1.0
    while high / low > 1.5:
        size = (low * high) ** 0.5
        moved = (images + size * step).float()
        found = reference(model, (moved, targets)).cosine_distance()[0, 1]
        low, high = (low, size) if found > distance else (size, high)
    return (images + low * step).float(), targets


@pytest.mark.parametrize("name", MODELS)
def test_float32_distances_are_right_to_a_millionth(name):
    model, batch = case(name, 12)
    expected = reference(model, batch)
    assert expected.cosine_distance().max() > 0.8
    assert error(ghost(model, batch), expected) < 1e-6
    assert error(ghost(model, batch, "float32"), expected) < 1e-6
    assert error(ghost(model, batch, "float64"), expected) < 1e-6


@pytest.mark.parametrize("name", ["mlp", "resnet", "vit"])
def test_distances_of_nearly_equal_samples(name):
    model, batch = case(name, 1)
    smooth(model)
    batch = nearly_equal(model, batch)
    expected = reference(model, batch)
    distances = expected.cosine_distance()[~torch.eye(4, dtype=torch.bool)]
    assert 1e-8 < distances.min() < 1.1e-6
    assert distances.max() < 1e-4
    assert error(ghost(model, batch), expected) < 1e-6
    refined = ghost(model, batch, "float64").cosine_distance()
    refined = refined[~torch.eye(4, dtype=torch.bool)]
    assert float(((refined - distances) / distances).abs().max()) < 0.01


@pytest.mark.parametrize("name", MODELS)
def test_bf16_products_are_good_for_decisions_and_say_what_they_cost(name):
    model, batch = case(name, 12)
    found = ghost(model, batch, "bf16")
    assert error(found, reference(model, batch)) < 1e-2
    assert any("bf16" in note and any(c.isdigit() for c in note) for note in found.notes)


@pytest.mark.parametrize("precision", ["float16", "fp32", "", "FLOAT64", "double"])
def test_an_unknown_precision_is_an_error(precision):
    model, batch = case("mlp", 4)
    with pytest.raises(UserError, match=r"precision.*float32.*float64.*bf16"):
        ghost(model, batch, precision)


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e15])
def test_tiny_and_huge_losses(scale):
    model, batch = case("mlp", 6)
    expected = reference(model, batch).cosine_distance()
    found = gramian(
        model, lambda m, b: scale * loss(m, b), batch, engine=ghost_cases.ENGINE
    ).cosine_distance()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_large_common_part():
    # Rows of 65,536 products that nearly cancel in the distance.
    model = make(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4096, 16))).float()
    images = (5 + 0.01 * normal(4096)(5)).float()
    batch = (images, torch.zeros(5, dtype=torch.long))
    assert error(ghost(model, batch), reference(model, batch)) < 1e-6


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_other_engines_take_the_default_precision(engine):
    model, batch = case("mlp", 4)
    found = gramian(model, loss, batch, engine=engine)
    assert error(found, reference(model, batch)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
def test_every_precision_takes_models_of_any_type(dtype, precision):
    model, (images, targets) = case("mlp", 6)
    model, images = model.to(dtype), images.to(dtype)
    found = ghost(model, (images, targets), precision)
    assert error(found, reference(model, (images, targets))) < 2e-2
