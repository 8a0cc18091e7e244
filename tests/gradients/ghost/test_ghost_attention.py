"""Attention: torch's own modules with all their options, and scaled-dot-product attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ghost_cases import Case, check, make, normal
from torch import Tensor, nn

T, S, D = 5, 4, 8


class Attend(nn.Module):
    """Self-attention, or attention to a memory where one comes with the batch."""

    def __init__(self, weights: bool = False, mask: str = "", heads: int = 2, **options: Any):
        super().__init__()
        self.attention = nn.MultiheadAttention(D, heads, **options)
        self.weights = weights
        self.mask = mask

    def forward(self, batch: Any) -> Tensor:
        x = batch["x"] if isinstance(batch, dict) else batch
        memory = batch["memory"] if isinstance(batch, dict) else x
        mask = torch.ones(x.shape[1], memory.shape[1], dtype=torch.bool).triu(1)
        options: dict[str, Any] = {"need_weights": self.weights}
        if self.mask == "bool":
            options["attn_mask"] = mask
        elif self.mask == "float":
            options["attn_mask"] = 0.3 * mask.double()
        elif self.mask == "each":
            each = mask.expand(len(x), *mask.shape) & (x[:, :, :1] > 0)
            options["attn_mask"] = each.repeat_interleave(self.attention.num_heads, 0)
        elif self.mask == "padding":
            options["key_padding_mask"] = memory[..., 0] > 0.5
        elif self.mask == "causal":
            options |= {"attn_mask": mask, "is_causal": True}
        if not self.attention.batch_first:
            x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        outputs, weights = self.attention(x, memory, memory, **options)
        if not self.attention.batch_first:
            outputs = outputs.transpose(0, 1)
        return outputs if weights is None else torch.cat([outputs, weights], -1)


class Decoder(nn.Module):
    """torch's transformer decoder over a memory."""

    def __init__(self, norm_first: bool, batch_first: bool = True):
        super().__init__()
        layer = nn.TransformerDecoderLayer(
            D, 2, 12, dropout=0.0, batch_first=batch_first, norm_first=norm_first
        )
        self.batch_first = batch_first
        self.decoder = nn.TransformerDecoder(layer, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x, memory = batch["x"], batch["memory"]
        mask = torch.ones(T, T, dtype=torch.bool).triu(1)
        if self.batch_first:
            return self.decoder(x, memory, tgt_mask=mask)
        return self.decoder(x.transpose(0, 1), memory.transpose(0, 1)).transpose(0, 1)


class Sdpa(nn.Module):
    """Attention written by hand around torch's kernel; grouped queries when kv < heads."""

    def __init__(self, causal: bool, kv: int = 2, packed: bool = True):
        super().__init__()
        self.kv, self.causal = kv, causal
        self.q = nn.Linear(D, D)
        self.kvs = nn.Linear(D, 2 * kv * 4, bias=False)
        self.out = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, 2, 4).transpose(1, 2)
        k, v = self.kvs(x).view(n, t, 2, self.kv, 4).permute(2, 0, 3, 1, 4)
        grouped = {"enable_gqa": True} if self.kv < 2 else {}
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, **grouped)
        return self.out(y.transpose(1, 2).reshape(n, t, D))


class Relative(nn.Module):
    """Attention with a trained bias of every pair of positions, and trained keys."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)
        self.bias = nn.Parameter(torch.zeros(2, T, T))
        self.temperature = nn.Parameter(torch.zeros(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        q, k, v = (
            part.reshape(n, T, 2, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-2, -1) * self.temperature.exp() + self.bias
        scores = scores + (q @ k.mT).softmax(-1)
        explicit = scores.softmax(-1) @ v
        fused = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.expand(n, -1, -1, -1))
        return (explicit + fused).transpose(1, 2).flatten(2)


def encoder(layers: int = 2, **options: Any) -> nn.Module:
    settings = {"dropout": 0.0, "batch_first": True} | options
    layer = nn.TransformerEncoderLayer(D, 2, 12, **settings)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def with_memory(width: int):
    def draw(n: int) -> dict[str, Tensor]:
        return {"x": normal(T, D)(n), "memory": normal(S, width)(n).flip(0)}

    return draw


x = normal(T, D)
CASES: dict[str, Case] = {
    "batch first": (lambda: Attend(batch_first=True), x),
    "time first": (lambda: Attend(), x),
    "weights": (lambda: Attend(True, batch_first=True), x),
    "weights, time first": (lambda: Attend(True), x),
    "no bias": (lambda: Attend(batch_first=True, bias=False), x),
    "one head": (lambda: Attend(batch_first=True, heads=1), x),
    "memory": (lambda: Attend(batch_first=True), with_memory(D)),
    "memory, weights, time first": (lambda: Attend(True), with_memory(D)),
    "kdim": (lambda: Attend(kdim=3, vdim=3, batch_first=True), with_memory(3)),
    "kdim, weights": (lambda: Attend(True, kdim=3, vdim=3), with_memory(3)),
    "bias kv": (lambda: Attend(add_bias_kv=True, batch_first=True), x),
    "bias kv, weights": (lambda: Attend(True, add_bias_kv=True), x),
    "zero attention": (lambda: Attend(add_zero_attn=True, batch_first=True), x),
    "bool mask": (lambda: Attend(mask="bool", batch_first=True), x),
    "bool mask, weights": (lambda: Attend(True, mask="bool", batch_first=True), x),
    "float mask": (lambda: Attend(mask="float"), x),
    "mask of each sample": (lambda: Attend(mask="each", batch_first=True, add_zero_attn=True), x),
    "padding": (lambda: Attend(mask="padding", batch_first=True, add_zero_attn=True), x),
    "causal": (lambda: Attend(mask="causal", batch_first=True), x),
    "encoder": (lambda: encoder(), x),
    "encoder, evaluation": (lambda: encoder().eval(), x),
    "encoder, norm first": (lambda: encoder(norm_first=True, activation="gelu"), x),
    "encoder, time first": (
        lambda: TimeFirst(encoder(1, batch_first=False)),
        x,
    ),
    "decoder": (lambda: Decoder(False), with_memory(D)),
    "decoder, norm first": (lambda: Decoder(True), with_memory(D)),
    "decoder, time first": (lambda: Decoder(False, batch_first=False), with_memory(D)),
    "transformer": (
        lambda: Both(nn.Transformer(D, 2, 1, 1, 12, dropout=0.0, batch_first=True)),
        with_memory(D),
    ),
    "sdpa": (lambda: Sdpa(False), x),
    "sdpa causal": (lambda: Sdpa(True), x),
    "sdpa grouped queries": (lambda: Sdpa(True, kv=1), x),
    "relative positions": (Relative, x),
}


class TimeFirst(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class Both(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layer(batch["memory"], batch["x"])


@pytest.mark.parametrize("name", CASES)
def test_attention(name):
    factory, batch = CASES[name]
    check(make(factory), batch(6))


@pytest.mark.parametrize("name", ["time first", "bias kv", "weights, time first", "encoder"])
def test_as_many_tokens_as_samples(name):
    factory, batch = CASES[name]
    check(make(factory), batch(T))
