"""The pre-norm transformer block that the vision transformer and the language model share.

Shapes: n samples, t tokens, d numbers a token, h heads.
"""

from __future__ import annotations

from typing import TypeAlias, final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gafscope.errors import UserError

Tokens: TypeAlias = Float[Tensor, "n t d"]


@final
class Attention(nn.Module):
    """Multi-head self-attention, `softmax(q k^T / sqrt(d / h)) v` in each head (arXiv 1706.03762).

    Args:
        dim: Numbers a token, d.
        heads: Number of heads; must divide `dim`.
        causal: Whether a token sees only itself and the tokens before it.
    """

    def __init__(self, dim: int, heads: int, causal: bool):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tokens) -> Tokens:
        """Map (n, t, d) to (n, t, d)."""
        samples, tokens, dim = x.shape
        qkv = self.qkv(x).view(samples, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(samples, tokens, dim))


@final
class Block(nn.Module):
    """`x = x + attention(norm(x))`, then `x = x + mlp(norm(x))`.

    Dropout falls on the output of every dense layer but qkv, as in arXiv 2010.11929, and not on
    the attention weights: every mask then belongs to an `nn.Dropout` module.

    Args:
        dim: Numbers a token, d.
        heads: Number of attention heads.
        mlp_ratio: Hidden units of the MLP over `dim`.
        dropout: Dropout rate.
        causal: Whether a token sees only itself and the tokens before it.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int, dropout: float, causal: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_ratio * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_ratio * dim, dim),
            nn.Dropout(dropout),
        )

    @property
    def residual_projections(self) -> tuple[nn.Linear, nn.Linear]:
        """The two layers whose outputs are added to the residual stream."""
        projection = self.mlp[3]
        assert isinstance(projection, nn.Linear)
        return self.attention.proj, projection

    def forward(self, x: Tokens) -> Tokens:
        """Map (n, t, d) to (n, t, d)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


def require_heads(dim: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the width.

    Args:
        dim: Numbers a token.
        heads: Number of attention heads.

    Raises:
        UserError: If `dim` is not divisible by `heads`.
    """
    if dim % heads:
        raise UserError(
            f"dim must be divisible by heads, but {dim} is not divisible by {heads}; "
            f"pass dim={heads * max(1, round(dim / heads))} or another number of heads."
        )
