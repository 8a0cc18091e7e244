from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gafscope.errors import UserError
from gafscope.models import resnet18, resnet34
from gafscope.models.resnet import BasicBlock, PreActivationBlock


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def images(n: int, size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("factory", "count"), [(resnet18, 11_689_512), (resnet34, 21_797_672)])
def test_parameter_counts_are_the_published_ones(factory, count):
    # The meta device counts without drawing the weights.
    with torch.device("meta"):
        assert parameters(factory(1000, stem="imagenet")) == count


@pytest.mark.parametrize(("factory", "convolutions"), [(resnet18, 17), (resnet34, 33)])
def test_there_are_as_many_weight_layers_as_the_name_says(factory, convolutions):
    model = factory(10, width=4)
    kernels = [m.kernel_size for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(kernel == (3, 3) for kernel in kernels) == convolutions
    assert sum(kernel == (1, 1) for kernel in kernels) == 3


@pytest.mark.parametrize(("stem", "size"), [("cifar", 32), ("imagenet", 8)])
def test_the_stem_sets_the_resolution_of_the_first_stage(stem, size):
    model = resnet18(10, stem=stem, width=4)
    assert model.stem(images(2, 32)).shape == (2, 4, size, size)
    assert model(images(2, 32)).shape == (2, 10)


@pytest.mark.parametrize("pre_activation", [False, True])
def test_stages_halve_the_resolution_and_double_the_channels(pre_activation):
    model = resnet18(10, width=4, pre_activation=pre_activation)
    x = model.stem(images(2, 32))
    for stage, expected in enumerate([(4, 32), (8, 16), (16, 8), (32, 4)]):
        x = model.stages[stage](x)
        assert x.shape == (2, expected[0], expected[1], expected[1])


def test_in_channels_and_num_classes():
    assert resnet18(7, in_channels=1, width=4, norm="group")(images(1, 8, 1)).shape == (1, 7)


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)])
@pytest.mark.parametrize("pre_activation", [False, True])
def test_all_norms_are_of_the_kind_asked_for(norm, kind, pre_activation):
    model = resnet18(10, norm=norm, width=4, pre_activation=pre_activation)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    # The stem's, two a block and three projections'; pre-activated, the first block has one and
    # the network a final one, and projections have none.
    assert len(norms) == (17 if pre_activation else 20)
    assert all(isinstance(norm, kind) for norm in norms)


def test_group_norm_keeps_samples_apart_and_batch_norm_does_not():
    batch = images(4, 32)
    apart = resnet18(10, norm="group", width=4)
    torch.testing.assert_close(apart(batch)[:1], apart(batch[:1]), rtol=1e-4, atol=1e-4)
    coupled = resnet18(10, norm="batch", width=4)
    assert not torch.allclose(coupled(batch)[:1], coupled(batch[:1]), atol=1e-2)


def test_convolutions_are_normal_with_variance_two_over_fan_out_and_norms_neutral():
    for module in resnet18(10, width=16).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            expected = math.sqrt(2 / fan_out)
            assert module.weight.std().item() == pytest.approx(expected, rel=0.12)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_a_post_activation_block_rectifies_its_shortcut():
    block = BasicBlock(4, 4, 1, "group")
    nn.init.zeros_(block.norm2.weight)
    x = images(2, 8, 4)
    torch.testing.assert_close(block(x), x.clamp(min=0))


def test_a_pre_activation_block_leaves_its_shortcut_alone():
    block = PreActivationBlock(4, 4, 1, "group", first=False)
    nn.init.zeros_(block.conv2.weight)
    x = images(2, 8, 4)
    assert (x < 0).any()
    assert torch.equal(block(x), x)


def test_a_pre_activation_block_normalises_before_it_convolves():
    block = PreActivationBlock(4, 4, 1, "group", first=False)
    x = images(2, 8, 4)
    torch.testing.assert_close(block(x) - x, block(50 * x) - 50 * x, rtol=1e-3, atol=1e-3)
    first = PreActivationBlock(4, 4, 1, "group", first=True)
    assert not any(isinstance(m, nn.GroupNorm) for m in first.activation.modules())


def test_a_projecting_pre_activation_block_projects_the_activated_input():
    block = PreActivationBlock(4, 8, 2, "group", first=False)
    nn.init.zeros_(block.conv2.weight)
    x = images(2, 8, 4)
    activated = block.activation(x)
    assert (activated >= 0).all()
    assert block.projection is not None
    torch.testing.assert_close(block(x), block.projection(activated))
    assert block(x).shape == (2, 8, 4, 4)


def test_only_a_pre_activation_network_has_a_final_norm_and_relu():
    x = images(2, 8, 32)
    pre = resnet18(10, width=4, pre_activation=True)
    post = resnet18(10, width=4)
    assert (pre.activation(x) >= 0).all()
    assert torch.equal(post.activation(x), x)


@pytest.mark.parametrize("pre_activation", [False, True])
def test_zero_init_residual_starts_blocks_as_their_shortcuts_and_still_learns(pre_activation):
    model = resnet18(
        10, norm="group", width=4, pre_activation=pre_activation, zero_init_residual=True
    )
    x = model.stem(images(2, 16))
    torch.testing.assert_close(model.stages[0](x), x)
    model(images(2, 16)).square().sum().backward()
    for module in model.modules():
        if isinstance(module, BasicBlock | PreActivationBlock):
            assert module.last.weight.grad.any()
    plain = resnet18(10, norm="group", width=4, pre_activation=pre_activation)
    assert not torch.allclose(plain.stages[0](x), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem": "cifar10"}, "Unknown stem 'cifar10'. Did you mean 'cifar'"),
        ({"norm": "layer"}, "Unknown norm 'layer'"),
        ({"norm": None}, "Unknown norm 'None'"),
        ({"width": 0}, "width must be"),
        ({"num_classes": 0}, "num_classes must be"),
        ({"in_channels": 0}, "in_channels must be"),
    ],
)
@pytest.mark.parametrize("factory", [resnet18, resnet34])
def test_mistakes_are_named(factory, arguments, message):
    with pytest.raises(UserError, match=message):
        factory(**arguments)
