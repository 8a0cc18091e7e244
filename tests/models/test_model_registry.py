from __future__ import annotations

import pytest
import torch
from torch import nn

from gafscope.errors import UserError
from gafscope.models import MLP, ResNet, ViT, build_model, model_names

NARROW = {
    "mlp": {"hidden": (8,)},
    "cnn": {"width": 4},
    "resnet18": {"width": 4},
    "resnet34": {"width": 4},
    "vit": {"dim": 6, "depth": 1},
}
FOR_TOKENS = {"gpt": {"dim": 8, "depth": 1}}


def test_every_name_has_a_network():
    assert model_names() == (*NARROW, *FOR_TOKENS)


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28)])
def test_every_network_fits_the_data(name, shape):
    model = build_model(name, input_shape=shape, num_classes=7, **NARROW[name])
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, 7)


def test_an_mlp_takes_any_shape_and_the_others_images_only():
    model = build_model("mlp", input_shape=(20,), num_classes=3)
    assert model(torch.zeros(2, 20)).shape == (2, 3)
    with pytest.raises(UserError, match=r"'cnn' takes images of shape .* \(20,\)"):
        build_model("cnn", input_shape=(20,), num_classes=3)


def test_a_gpt_fits_the_tokens():
    model = build_model("gpt", input_shape=(5,), num_classes=7, seed=0, **FOR_TOKENS["gpt"])
    assert model(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 7)
    with pytest.raises(UserError, match=r"tokens of shape \(context,\).* \(1, 8, 8\)"):
        build_model("gpt", input_shape=(1, 8, 8), num_classes=7)
    with pytest.raises(UserError, match="option of model 'gpt' 'context'"):
        build_model("gpt", input_shape=(5,), num_classes=7, context=8)


def test_options_reach_the_network():
    shape = (3, 16, 16)
    wide = build_model("mlp", input_shape=shape, num_classes=3, hidden=[5, 4], norm="layer")
    assert isinstance(wide, MLP)
    assert [m.out_features for m in wide.modules() if isinstance(m, nn.Linear)] == [5, 4, 3]
    assert any(isinstance(module, nn.LayerNorm) for module in wide.modules())
    grouped = build_model("resnet18", input_shape=shape, num_classes=3, norm="group", width=4)
    assert isinstance(grouped, ResNet)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in grouped.modules())


@pytest.mark.parametrize(
    ("size", "patch"), [(1, 1), (8, 2), (28, 4), (29, 29), (32, 4), (64, 8), (224, 28)]
)
def test_the_patch_size_suits_the_image(size, patch):
    model = build_model("vit", input_shape=(1, size, size), num_classes=2, dim=6, depth=1)
    assert isinstance(model, ViT)
    assert model.patches.kernel_size == (patch, patch)


def test_a_given_patch_size_wins():
    model = build_model("vit", input_shape=(1, 8, 8), num_classes=2, dim=6, depth=1, patch_size=4)
    assert isinstance(model, ViT)
    assert model.patches.kernel_size == (4, 4)


@pytest.mark.parametrize("name", NARROW)
def test_a_seed_gives_the_same_weights_and_leaves_the_global_state_alone(name):
    def build(seed: int | None) -> torch.Tensor:
        model = build_model(name, input_shape=(1, 8, 8), num_classes=3, seed=seed, **NARROW[name])
        return nn.utils.parameters_to_vector(model.parameters())

    torch.manual_seed(1)
    first = build(0)
    torch.rand(3)
    state = torch.get_rng_state()
    second, other = build(0), build(5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(build(None), build(None))


def test_a_seed_does_what_the_global_seed_does():
    seeded = build_model("mlp", input_shape=(4,), num_classes=3, seed=3)
    torch.manual_seed(3)
    by_hand = build_model("mlp", input_shape=(4,), num_classes=3)
    for a, b in zip(seeded.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(a, b)


def test_seeded_weights_do_not_depend_on_the_default_device():
    on_cpu = build_model("mlp", input_shape=(4,), num_classes=3, seed=3)
    with torch.device("meta"):
        elsewhere = build_model("mlp", input_shape=(4,), num_classes=3, seed=3)
    for a, b in zip(on_cpu.parameters(), elsewhere.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet81", {}, "Unknown model 'resnet81'. Did you mean 'resnet"),
        ("mlp", {"hiden": (3,)}, "Unknown option of model 'mlp' 'hiden'. Did you mean 'hidden'"),
        ("mlp", {"stem": "cifar"}, "Choose from: hidden, dropout, norm"),
        ("cnn", {"in_channels": 3}, "Unknown option of model 'cnn' 'in_channels'"),
        ("cnn", {"num_classes": 0}, "num_classes must be"),
        ("cnn", {"input_shape": (0, 8, 8)}, r"input_shape\[0\] must be"),
        ("vit", {"input_shape": (3, 8, 16)}, "square images, but these have 8 x 16"),
        ("vit", {"patch_size": 3}, "divisible by patch_size"),
    ],
)
def test_mistakes_are_named(name, arguments, message):
    with pytest.raises(UserError, match=message):
        build_model(name, **{"input_shape": (1, 8, 8), "num_classes": 3, **arguments})
