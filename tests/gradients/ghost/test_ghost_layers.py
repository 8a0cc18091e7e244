"""Every supported layer alone, in float64: ghost = loop to 1e-9."""

from __future__ import annotations

import pytest
import torch
from ghost_cases import Case, check, check_right_or_refused, make, normal, tokens
from torch import Tensor, nn

DENSE: dict[str, Case] = {
    "linear": (lambda: nn.Linear(7, 5), normal(7)),
    "linear no bias": (lambda: nn.Linear(7, 5, bias=False), normal(7)),
    "linear wide": (lambda: nn.Linear(3, 40), normal(3)),
    "linear one output": (lambda: nn.Linear(9, 1), normal(9)),
    "linear one input": (lambda: nn.Linear(1, 9), normal(1)),
    "linear of tokens": (lambda: nn.Linear(7, 5), normal(4, 7)),
    "linear of tokens no bias": (lambda: nn.Linear(7, 5, bias=False), normal(4, 7)),
    "linear of one token": (lambda: nn.Linear(7, 5), normal(1, 7)),
    "linear of many tokens": (lambda: nn.Linear(2, 3), normal(50, 2)),
    "linear of pixels": (lambda: nn.Linear(7, 5), normal(2, 3, 7)),
    "linear of pixels no bias": (lambda: nn.Linear(7, 5, bias=False), normal(2, 3, 7)),
    "two linear": (lambda: nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4)), normal(7)),
    "prelu": (lambda: nn.PReLU(), normal(4, 7)),
    "prelu of channels": (lambda: nn.PReLU(4), normal(4, 7)),
    "prelu of vectors": (lambda: nn.PReLU(4), normal(4)),
    "bilinear": (lambda: Pairs(nn.Bilinear(4, 3, 5)), normal(7)),
    "bilinear of tokens no bias": (lambda: Pairs(nn.Bilinear(4, 3, 5, bias=False)), normal(2, 7)),
}

CONVOLUTIONS: dict[str, Case] = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), normal(3, 9)),
    "conv1d stride": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1, bias=False), normal(3, 9)),
    "conv1d depthwise": (lambda: nn.Conv1d(3, 6, 3, groups=3), normal(3, 9)),
    "conv1d dilated": (lambda: nn.Conv1d(3, 4, 3, dilation=2, padding=2), normal(3, 9)),
    "conv1d circular": (
        lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"),
        normal(3, 9),
    ),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3), normal(3, 7, 8)),
    "conv2d no bias": (lambda: nn.Conv2d(3, 4, 3, bias=False), normal(3, 7, 8)),
    "conv2d padding": (lambda: nn.Conv2d(3, 4, 3, padding=1), normal(3, 5, 4)),
    "conv2d same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), normal(3, 5, 4)),
    "conv2d same even": (lambda: nn.Conv2d(3, 4, (2, 4), padding="same"), normal(3, 5, 6)),
    "conv2d same dilated": (
        lambda: nn.Conv2d(3, 4, 2, padding="same", dilation=3),
        normal(3, 7, 8),
    ),
    "conv2d valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid", stride=2), normal(3, 7, 8)),
    "conv2d circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        normal(3, 5, 4),
    ),
    "conv2d reflect": (
        lambda: nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect"),
        normal(3, 5, 4),
    ),
    "conv2d replicate": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
        normal(3, 5, 4),
    ),
    "conv2d same circular": (
        lambda: nn.Conv2d(3, 4, (3, 2), padding="same", padding_mode="circular"),
        normal(3, 5, 4),
    ),
    "conv2d stride": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), normal(3, 8, 8)),
    "conv2d stride leaves pixels": (lambda: nn.Conv2d(3, 4, 2, stride=3), normal(3, 8, 9)),
    "conv2d stride over kernel": (lambda: nn.Conv2d(3, 4, 1, stride=2), normal(3, 7, 8)),
    "conv2d patches": (lambda: nn.Conv2d(3, 4, 4, stride=4), normal(3, 8, 8)),
    "conv2d rectangular": (
        lambda: nn.Conv2d(3, 4, (1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        normal(3, 7, 6),
    ),
    "conv2d dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2), normal(3, 7, 8)),
    "conv2d all options": (
        lambda: nn.Conv2d(4, 6, (3, 2), (2, 3), (2, 1), (2, 3), groups=2),
        normal(4, 9, 10),
    ),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), normal(4, 5, 6)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), normal(4, 5, 6)),
    "conv2d depthwise multiplied": (
        lambda: nn.Conv2d(3, 6, 3, groups=3, stride=2),
        normal(3, 7, 6),
    ),
    "conv2d 1x1": (lambda: nn.Conv2d(3, 4, 1), normal(3, 5, 6)),
    "conv2d 1x1 padded": (lambda: nn.Conv2d(3, 4, 1, padding=1), normal(3, 5, 6)),
    "conv2d even": (lambda: nn.Conv2d(3, 4, 2), normal(3, 5, 6)),
    "conv2d kernel = image": (lambda: nn.Conv2d(3, 4, (5, 6)), normal(3, 5, 6)),
    "conv2d kernel over image": (lambda: nn.Conv2d(3, 4, 5, padding=2), normal(3, 2, 3)),
    "conv2d padding over kernel": (lambda: nn.Conv2d(2, 3, 2, padding=4), normal(2, 3, 2)),
    "conv2d of one pixel": (lambda: nn.Conv2d(3, 4, 3, padding=1), normal(3, 1, 1)),
    "conv2d deep": (lambda: nn.Conv2d(40, 50, 3, padding=1), normal(40, 2, 2)),
    "conv2d large image": (lambda: nn.Conv2d(2, 3, 3, padding=1), normal(2, 24, 24)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1)), normal(2, 3, 4, 5)),
    "conv3d all options": (
        lambda: nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding=1, dilation=(1, 1, 2), groups=2),
        normal(2, 3, 4, 5),
    ),
    "conv3d same reflect": (
        lambda: nn.Conv3d(2, 3, 3, padding="same", padding_mode="replicate", bias=False),
        normal(2, 3, 4, 5),
    ),
    "transposed 1d": (
        lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1),
        normal(3, 5),
    ),
    "transposed 2d": (lambda: nn.ConvTranspose2d(3, 4, 3), normal(3, 4, 5)),
    "transposed 2d upsampling": (
        lambda: nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False),
        normal(3, 4, 5),
    ),
    "transposed 2d output padding": (
        lambda: nn.ConvTranspose2d(3, 4, (3, 2), (2, 3), 1, output_padding=(1, 2)),
        normal(3, 4, 5),
    ),
    "transposed 2d groups dilated": (
        lambda: nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2, dilation=2, stride=2),
        normal(4, 3, 4),
    ),
    "transposed 2d depthwise": (lambda: nn.ConvTranspose2d(4, 4, 3, 2, groups=4), normal(4, 3, 4)),
    "transposed 3d": (
        lambda: nn.ConvTranspose3d(2, 4, 2, stride=2, groups=2, output_padding=(0, 1, 0)),
        normal(2, 2, 3, 2),
    ),
}

NORMS: dict[str, Case] = {
    "layer norm": (lambda: nn.LayerNorm(7), normal(7)),
    "layer norm of tokens": (lambda: nn.LayerNorm(7), normal(4, 7)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((4, 7)), normal(4, 7)),
    "layer norm of images": (lambda: nn.LayerNorm((4, 7)), normal(3, 4, 7)),
    "layer norm no bias": (lambda: nn.LayerNorm(7, bias=False), normal(4, 7)),
    "layer norm not affine": (
        lambda: nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5, elementwise_affine=False)),
        normal(4, 7),
    ),
    "group norm": (lambda: nn.GroupNorm(2, 4), normal(4, 5, 6)),
    "group norm of one group": (lambda: nn.GroupNorm(1, 4), normal(4, 5)),
    "group norm of channels": (lambda: nn.GroupNorm(4, 4), normal(4, 5, 6)),
    "group norm of vectors": (lambda: nn.GroupNorm(2, 8), normal(8)),
    "rms norm": (lambda: nn.RMSNorm(7), normal(7)),
    "rms norm of tokens": (lambda: nn.RMSNorm(7), normal(4, 7)),
    "rms norm of two dimensions": (lambda: nn.RMSNorm((4, 7)), normal(3, 4, 7)),
    "instance norm 1d": (lambda: nn.InstanceNorm1d(3, affine=True), normal(3, 8)),
    "instance norm 2d": (lambda: nn.InstanceNorm2d(3, affine=True), normal(3, 5, 6)),
    "instance norm 2d tracked": (
        lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True).eval(),
        normal(3, 5, 6),
    ),
    "instance norm 2d tracked, training": (
        lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
        normal(3, 5, 6),
    ),
    "batch norm 1d": (lambda: nn.BatchNorm1d(7).eval(), normal(7)),
    "batch norm 1d of sequences": (lambda: nn.BatchNorm1d(3).eval(), normal(3, 8)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3).eval(), normal(3, 5, 6)),
    "batch norm after convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(),
        normal(3, 5, 6),
    ),
    "local response norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(3)),
        normal(3, 5, 6),
    ),
}


class Pairs(nn.Module):
    """A layer of two inputs: the first four numbers and the rest."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[..., :4].contiguous(), x[..., 4:].contiguous())


class Bags(nn.Module):
    """Bags of a fixed number of tokens, given flat with offsets, as recommenders do."""

    def __init__(self, mode: str, last: bool = False):
        super().__init__()
        self.bag = nn.EmbeddingBag(11, 5, mode=mode, include_last_offset=last)

    def forward(self, x: Tensor) -> Tensor:
        offsets = torch.arange(0, x.numel() + self.bag.include_last_offset, x.shape[1])
        return self.bag(x.flatten(), offsets)


class WeightedBag(nn.Module):
    """Bags whose tokens weigh differently; the weights may be trained too."""

    def __init__(self, trained: bool):
        super().__init__()
        self.bag = nn.EmbeddingBag(11, 5, mode="sum")
        self.weights = nn.Parameter(torch.ones(11), requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        return self.bag(x, per_sample_weights=self.weights[x])


EMBEDDINGS: dict[str, Case] = {
    "embedding": (lambda: nn.Embedding(11, 5), tokens(11, 4)),
    "embedding of one token": (lambda: nn.Embedding(11, 5), tokens(11)),
    "embedding repeated tokens": (lambda: nn.Embedding(3, 5), tokens(3, 9)),
    "embedding one word": (lambda: nn.Embedding(1, 5), tokens(1, 9)),
    "embedding of grids": (lambda: nn.Embedding(11, 5), tokens(11, 2, 3)),
    "embedding padding": (lambda: nn.Embedding(4, 5, padding_idx=1), tokens(4, 7)),
    "embedding last is padding": (lambda: nn.Embedding(4, 5, padding_idx=-1), tokens(4, 7)),
    "embedding of many words": (lambda: nn.Embedding(500, 3), tokens(500, 4)),
    "bag sum": (lambda: nn.EmbeddingBag(11, 5, mode="sum"), tokens(11, 6)),
    "bag mean": (lambda: nn.EmbeddingBag(11, 5, mode="mean"), tokens(11, 6)),
    "bag max": (lambda: nn.EmbeddingBag(11, 5, mode="max"), tokens(11, 6)),
    "bag repeated": (lambda: nn.EmbeddingBag(3, 5, mode="mean"), tokens(3, 7)),
    "bag padding": (lambda: nn.EmbeddingBag(4, 5, mode="mean", padding_idx=1), tokens(4, 7)),
    "bag weighted": (lambda: WeightedBag(False), tokens(11, 6)),
}
UNUSUAL_EMBEDDINGS: dict[str, Case] = {
    "max norm": (lambda: nn.Embedding(11, 5, max_norm=0.7), tokens(11, 4)),
    "scaled by frequency": (lambda: nn.Embedding(3, 5, scale_grad_by_freq=True), tokens(3, 4)),
    "sparse": (lambda: nn.Embedding(11, 5, sparse=True), tokens(11, 4)),
    "bag sparse": (lambda: nn.EmbeddingBag(11, 5, sparse=True), tokens(11, 4)),
    "bag scaled by frequency": (
        lambda: nn.EmbeddingBag(3, 5, mode="sum", scale_grad_by_freq=True),
        tokens(3, 4),
    ),
    "bag max norm": (lambda: nn.EmbeddingBag(11, 5, max_norm=0.7), tokens(11, 4)),
    "bag offsets": (lambda: Bags("mean"), tokens(11, 6)),
    "bag offsets max": (lambda: Bags("max"), tokens(11, 6)),
    "bag last offset": (lambda: Bags("sum", last=True), tokens(11, 6)),
    "bag trained weights": (lambda: WeightedBag(True), tokens(11, 6)),
}
ALL = DENSE | CONVOLUTIONS | NORMS | EMBEDDINGS


# torch warns that it copies the input of an even kernel.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", ALL)
def test_the_layer_alone(name):
    factory, batch = ALL[name]
    check(make(factory), batch(6), microbatches=(None, 2 + list(ALL).index(name) % 2))


@pytest.mark.parametrize("name", UNUSUAL_EMBEDDINGS)
@pytest.mark.parametrize("k", [None, 2])
def test_embeddings_whose_gradient_depends_on_more_than_the_tokens(name, k):
    factory, batch = UNUSUAL_EMBEDDINGS[name]
    check_right_or_refused(make(factory), batch(6), k=k)


@pytest.mark.parametrize("n", [24, 130])
@pytest.mark.parametrize(
    "name",
    [
        "linear",
        "linear of many tokens",
        "conv2d padding",
        "conv2d stride",
        "conv2d groups",
        "embedding",
    ],
)
def test_more_samples_where_other_forms_are_cheaper(name, n):
    factory, batch = ALL[name]
    check(make(factory), batch(n), microbatches=(None, n // 2))
