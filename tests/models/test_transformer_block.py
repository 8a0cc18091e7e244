from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gafscope.models._transformer import Attention, Block


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_softmax_of_scaled_products_head_by_head(causal):
    attention = Attention(6, 2, causal).double()
    x = torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed = torch.empty_like(x)
    for n in range(3):
        q, k, v = attention.qkv(x[n]).chunk(3, dim=-1)
        for head in (slice(0, 3), slice(3, 6)):
            scores = q[:, head] @ k[:, head].T / math.sqrt(3)
            if causal:
                scores = scores + torch.full((5, 5), -torch.inf).triu(1)
            mixed[n, :, head] = scores.softmax(-1) @ v[:, head]
    torch.testing.assert_close(attention(x), attention.proj(mixed))


def test_a_block_with_zero_projections_is_the_identity():
    block = Block(6, 2, 4, 0.0, causal=False)
    for projection in block.residual_projections:
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)


def test_a_block_normalises_the_input_of_each_branch():
    block = Block(6, 2, 4, 0.0, causal=False).double()
    x = torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = []
    block.attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    block(100 * x)
    assert len(seen) == 2
    for branch in seen:
        torch.testing.assert_close(branch.std(-1, correction=0), torch.ones_like(branch[..., 0]))
