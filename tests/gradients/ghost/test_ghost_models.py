"""The reference models in float64: ghost = loop to 1e-9."""

from __future__ import annotations

from collections.abc import Callable

import ghost_cases
import pytest
import torch
import torch.nn.functional as F
from ghost_cases import assert_same, check, make, normal, tokens
from torch import nn

from gafscope.gradients import gramian, supervised
from gafscope.models import cnn, gpt, mlp, resnet18, vit

loss = supervised(F.cross_entropy)
CLASSES, WORDS = 5, 11
IMAGES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mlp": (lambda: mlp(192, (6,), CLASSES), 8),
    "mlp with layer norm": (lambda: mlp(192, (6, 4), CLASSES, norm="layer"), 8),
    "mlp with batch norm": (lambda: mlp(192, (6,), CLASSES, norm="batch").eval(), 8),
    "cnn": (lambda: cnn(3, CLASSES, width=4), 8),
    "cnn with group norm": (lambda: cnn(3, CLASSES, width=4, norm="group"), 8),
    "cnn with batch norm": (lambda: cnn(3, CLASSES, width=4, norm="batch").eval(), 8),
    "resnet": (lambda: resnet18(CLASSES, norm="group", width=8), 8),
    "resnet, pre-activation": (
        lambda: resnet18(CLASSES, norm="group", width=4, pre_activation=True),
        8,
    ),
    "resnet, imagenet stem": (
        lambda: resnet18(CLASSES, norm="group", width=4, stem="imagenet"),
        16,
    ),
    "resnet, branches start at zero": (
        lambda: resnet18(CLASSES, norm="group", width=4, zero_init_residual=True),
        8,
    ),
    "resnet with batch norm": (lambda: resnet18(CLASSES, width=4).eval(), 8),
    "vit": (lambda: vit(CLASSES, image_size=8, patch_size=4, dim=8, depth=2, heads=2), 8),
}


@pytest.mark.parametrize("name", IMAGES)
def test_networks_for_images(name):
    factory, size = IMAGES[name]
    check(make(factory), (normal(3, size, size)(4), tokens(CLASSES)(4)), loss)


@pytest.mark.parametrize("tied", [True, False])
def test_gpt(tied):
    model = make(lambda: gpt(WORDS, context=8, dim=8, depth=2, heads=2, tie_weights=tied))
    words = tokens(WORDS, 7)(6)
    check(model, (words[:, :-1], words[:, 1:].clone()), loss)


def test_networks_as_they_are_initialised():
    # Residual branches, biases and norms at their first values: whole blocks of zeros and ones.
    torch.manual_seed(0)
    model = resnet18(CLASSES, norm="group", width=4, zero_init_residual=True).double()
    check(model, (normal(3, 16, 16)(4), tokens(CLASSES)(4)), loss)
    model = gpt(WORDS, context=8, dim=8, depth=1, heads=2).double()
    words = tokens(WORDS, 7)(4)
    check(model, (words[:, :-1], words[:, 1:].clone()), loss)


def test_a_part_of_a_network_is_frozen():
    model = make(lambda: resnet18(CLASSES, norm="group", width=4))
    batch = (normal(3, 16, 16)(4), tokens(CLASSES)(4))
    names = [name for name, _ in model.named_parameters()]
    for trained in (names[:1], names[len(names) // 2 : len(names) // 2 + 3], names[-1:]):
        for name, p in model.named_parameters():
            p.requires_grad_(name in trained)
        check(model, batch, loss, microbatches=(None, 2))


def test_whole_model_only():
    model = make(lambda: cnn(3, CLASSES, width=4))
    batch = (normal(3, 8, 8)(6), tokens(CLASSES)(6))
    expected = gramian(model, loss, batch, engine="loop", layers=False)
    found = gramian(model, loss, batch, engine=ghost_cases.ENGINE, layers=False)
    assert found.layers == {}
    assert_same(found, expected)


@pytest.mark.parametrize("budget", [3 * 10**5, 10**6, 10**8])
def test_a_memory_budget_changes_no_number(budget):
    model = make(lambda: cnn(3, CLASSES, width=4))
    batch = (normal(3, 8, 8)(12), tokens(CLASSES)(12))
    for k in (None, 4):
        expected = gramian(model, loss, batch, k, engine="loop")
        found = gramian(model, loss, batch, k, engine=ghost_cases.ENGINE, memory_budget=budget)
        assert_same(found, expected)


def test_the_matrix_is_symmetric_and_the_layers_add_up():
    model = make(lambda: resnet18(CLASSES, norm="group", width=8))
    found = gramian(
        model, loss, (normal(3, 16, 16)(6), tokens(CLASSES)(6)), engine=ghost_cases.ENGINE
    )
    assert torch.equal(found.matrix, found.matrix.T)
    for layer in found.layers.values():
        assert torch.equal(layer, layer.T)
        assert (layer.diagonal() >= 0).all()
    total = torch.stack(list(found.layers.values())).sum(0)
    torch.testing.assert_close(found.matrix, total, rtol=1e-12, atol=0)


def test_two_measurements_are_equal_to_the_bit():
    model = make(lambda: cnn(3, CLASSES, width=4, norm="group")).float()
    batch = (normal(3, 8, 8)(6).float(), tokens(CLASSES)(6))
    first, second = (
        gramian(model, loss, batch, engine=ghost_cases.ENGINE).matrix for _ in range(2)
    )
    assert torch.equal(first, second)


def test_a_compiled_model_is_right():
    model = make(lambda: mlp(192, (6,), CLASSES))
    batch = (normal(3, 8, 8)(6), tokens(CLASSES)(6))
    expected = gramian(model, loss, batch, engine="loop")
    compiled = torch.compile(model, backend="eager")
    found = gramian(compiled, loss, batch, engine="auto")
    torch.testing.assert_close(found.matrix, expected.matrix, rtol=1e-9, atol=0)
