from __future__ import annotations

import pytest
import torch
from torch import nn

from gafscope.errors import UserError
from gafscope.models import vit


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def images(n: int, size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_parameter_counts():
    block = 12 * 192**2 + 13 * 192
    tokens = 65 * 192 + 192 + 4 * 4 * 3 * 192 + 192
    assert parameters(vit()) == tokens + 6 * block + 2 * 192 + 192 * 10 + 10
    assert 1_000_000 < parameters(vit(dim=128, heads=4)) < 2_000_000


def test_num_classes_channels_and_image_size():
    model = vit(7, image_size=12, patch_size=3, in_channels=2, dim=8, depth=1, heads=2)
    assert model(images(3, 12, 2)).shape == (3, 7)
    assert model.positions.weight.shape == (1 + 16, 8)


def test_depth_and_mlp_ratio_add_what_they_should():
    small = {"dim": 8, "heads": 2}
    one = parameters(vit(depth=1, **small))
    assert parameters(vit(depth=3, **small)) - one == 2 * (12 * 64 + 13 * 8)
    assert parameters(vit(depth=1, mlp_ratio=2, **small)) - one == -(2 * 2 * 64 + 2 * 8)


def test_weights_are_cut_off_normals_and_biases_zero():
    for module in vit(100, dim=64, depth=1, heads=2).modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, nn.Linear | nn.Conv2d):
            # Cut at two standard deviations, a normal keeps .880 of its standard deviation.
            assert module.weight.std().item() == pytest.approx(0.02 * 0.880, rel=0.05)
            assert 0.03 < module.weight.abs().max().item() <= 0.04


def test_class_token_and_positions_are_learned():
    model = vit(dim=8, depth=1, heads=2)
    model(images(2, 32)).square().sum().backward()
    assert model.class_token.weight.grad is not None
    assert model.class_token.weight.grad.any()
    assert model.positions.weight.grad is not None
    assert model.positions.weight.grad.any(dim=1).all()


def shuffled_patches(batch: torch.Tensor) -> torch.Tensor:
    return torch.cat([batch[..., 16:, :], batch[..., :16, :]], dim=2)


def test_the_order_of_patches_matters_through_the_positions_only():
    model = vit(dim=8, depth=2, heads=2).double()
    nn.init.normal_(model.positions.weight)
    batch = images(2, 32).double()
    assert not torch.allclose(model(batch), model(shuffled_patches(batch)))
    nn.init.zeros_(model.positions.weight)
    torch.testing.assert_close(model(batch), model(shuffled_patches(batch)))


def test_every_pixel_reaches_the_logits():
    model = vit(dim=8, depth=1, heads=2)
    batch = images(1, 32).requires_grad_()
    model(batch).sum().backward()
    assert batch.grad is not None
    assert (batch.grad != 0).all()


def test_dropout_acts_in_training_mode_only():
    model = vit(dim=8, depth=1, heads=2, dropout=0.5)
    batch = images(2, 32)
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 100, "heads": 3}, "dim must be divisible by heads, but 100 .* pass dim=99"),
        (
            {"image_size": 28, "patch_size": 8},
            r"image_size must be divisible by patch_size, but 28 .* \[1, 2, 4, 7, 14, 28\]",
        ),
        ({"depth": 0}, "depth must be"),
        ({"patch_size": 0}, "patch_size must be"),
        ({"dropout": -0.1}, "dropout must lie"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        vit(**arguments)


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match="images of 32 x 32 pixels, but these have 28 x 28"):
        vit(dim=8, depth=1, heads=2)(images(1, 28))
