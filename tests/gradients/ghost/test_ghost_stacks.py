"""Random stacks of layers, and what must hold for any of them."""

from __future__ import annotations

import ghost_cases
import pytest
import torch
from ghost_cases import check, make, normal, waves
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gafscope.gradients import gramian
from gafscope.models import cnn

CHANNELS = 4
few = settings(max_examples=15, deadline=None, derandomize=True)


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


@st.composite
def convolutional(draw: st.DrawFn) -> tuple[list[nn.Module], tuple[int, ...]]:
    """Layers for images, then perhaps dense ones."""
    side, stack = draw(st.integers(3, 7)), []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "norm", "act", "residual", "depthwise"]))
        bias, kernel = draw(st.booleans()), draw(st.sampled_from([1, 2, 3]))
        if kind == "conv":
            options = {"stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 2))}
            options |= {"groups": draw(st.sampled_from([1, 2])), "bias": bias}
            stack.append(nn.LazyConv2d(CHANNELS, kernel, **options))
        elif kind == "depthwise":
            stack.append(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=bias))
        elif kind == "norm":
            stack.append(
                draw(
                    st.sampled_from(
                        [
                            nn.GroupNorm(2, CHANNELS),
                            nn.BatchNorm2d(CHANNELS).eval(),
                            nn.InstanceNorm2d(
                                CHANNELS, affine=True, track_running_stats=True
                            ).eval(),
                        ]
                    )
                )
            )
        elif kind == "act":
            stack.append(draw(st.sampled_from([nn.ReLU(), nn.GELU(), nn.PReLU(), nn.Tanh()])))
        else:
            stack.append(
                Residual(
                    nn.GroupNorm(1, CHANNELS),
                    nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias),
                    nn.ReLU(inplace=True),
                )
            )
    end = draw(st.sampled_from(["none", "pool", "flatten"]))
    if end == "pool":
        stack += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)]
    elif end == "flatten":
        stack += [nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(3)]
    return stack, (CHANNELS, side, draw(st.integers(3, 7)))


@st.composite
def sequential(draw: st.DrawFn) -> tuple[list[nn.Module], tuple[int, ...]]:
    """Layers for tokens."""
    width, stack = CHANNELS, []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["linear", "norm", "act", "residual", "attention", "shared"]))
        if kind == "linear":
            out = draw(st.sampled_from([2, 4, 6]))
            stack.append(nn.Linear(width, out, bias=draw(st.booleans())))
            width = out
        elif kind == "norm":
            stack.append(draw(st.sampled_from([nn.LayerNorm(width), nn.RMSNorm(width)])))
        elif kind == "act":
            stack.append(draw(st.sampled_from([nn.SiLU(), nn.Softplus(), nn.PReLU()])))
        elif kind == "residual":
            stack.append(
                Residual(nn.LayerNorm(width), nn.Linear(width, 3), nn.GELU(), nn.Linear(3, width))
            )
        elif kind == "attention":
            stack.append(
                nn.TransformerEncoderLayer(
                    width, 2, 5, 0.0, batch_first=True, norm_first=draw(st.booleans())
                )
            )
        else:
            layer = nn.Linear(width, width)
            stack += [layer, nn.Tanh(), layer]
    return stack, (draw(st.integers(1, 6)), CHANNELS)


def built(layers: list[nn.Module], shape: tuple[int, ...]) -> nn.Module:
    model = nn.Sequential(nn.Unflatten(1, shape), *layers)
    with torch.no_grad():
        model(torch.zeros(2, torch.Size(shape).numel()))
    return model


@settings(few, max_examples=25)
@given(stack=st.one_of(convolutional(), sequential()), n=st.sampled_from([2, 3, 4, 6]))
def test_random_stacks(stack, n):
    layers, shape = stack
    try:
        model = make(lambda: built(layers, shape))
    except (RuntimeError, ValueError):
        return  # a kernel larger than what is left of the image
    if any(p.requires_grad for p in model.parameters()):
        check(model, normal(torch.Size(shape).numel())(n))


@pytest.fixture(scope="module")
def images() -> tuple[nn.Module, Tensor]:
    return make(lambda: cnn(3, 5, width=4, norm="group")), normal(3, 8, 8)(5)


@few
@given(order=st.permutations(range(5)))
def test_reordered_samples_reorder_the_matrix(images, order):
    model, batch = images
    whole = gramian(model, waves, batch, engine=ghost_cases.ENGINE)
    found = gramian(model, waves, batch[list(order)], engine=ghost_cases.ENGINE)
    for layer in (None, *whole.layers):
        expected = whole.of(layer)[list(order)][:, list(order)]
        scale = float(expected.abs().max())
        torch.testing.assert_close(found.of(layer), expected, rtol=0, atol=1e-11 * scale)


@few
@given(scale=st.floats(1e-6, 1e6), negative=st.booleans())
def test_a_scaled_loss_scales_the_matrix_by_the_square(images, scale, negative):
    model, batch = images
    scale = -scale if negative else scale
    whole = gramian(model, waves, batch, engine=ghost_cases.ENGINE).matrix
    found = gramian(
        model, lambda m, x: scale * waves(m, x), batch, engine=ghost_cases.ENGINE
    ).matrix
    torch.testing.assert_close(found, scale**2 * whole, rtol=1e-10, atol=0)


@few
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=7))
def test_any_choice_of_samples_gives_the_same_products(images, rows):
    model, batch = images
    whole = gramian(model, waves, batch, engine=ghost_cases.ENGINE).matrix
    found = gramian(model, waves, batch[rows], engine=ghost_cases.ENGINE).matrix
    expected = whole[rows][:, rows]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


@pytest.mark.parametrize("u", [2, 3])
def test_microbatches_are_means_of_samples(u):
    model, batch = make(lambda: cnn(3, 5, width=4, norm="group")), normal(3, 8, 8)(6)
    samples = gramian(model, waves, batch, engine=ghost_cases.ENGINE)
    found = gramian(model, waves, batch, 6 // u, engine=ghost_cases.ENGINE)
    for layer in (None, *samples.layers):
        expected = samples.of(layer).reshape(6 // u, u, 6 // u, u).mean((1, 3))
        torch.testing.assert_close(found.of(layer), expected, rtol=1e-9, atol=1e-14)
