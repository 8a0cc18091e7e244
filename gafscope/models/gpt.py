"""A small language model in the style of GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gafscope.errors import UserError
from gafscope.models._parts import require_dropout, require_sizes
from gafscope.models._transformer import Block, require_heads


@final
class GPT(nn.Module):
    """Token and position embeddings through causal pre-norm blocks; made by `gpt`.

    Args:
        vocab_size: Number of tokens there are.
        context: Largest number of tokens in a sequence.
        dim: Numbers a token.
        depth: Number of blocks.
        heads: Number of attention heads.
        dropout: Dropout rate.
        tie_weights: Whether the head uses the token embeddings as its weight.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        context: int,
        dim: int,
        depth: int,
        heads: int,
        dropout: float,
        tie_weights: bool,
    ):
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(context, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(dim, heads, 4, dropout, True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        if tie_weights:
            self.head.weight = self.tokens.weight
        self._initialise()

    def forward(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t vocab"]:
        """Predict the next token at every position.

        Args:
            tokens: (n, t) token indices, t at most `context`.

        Returns:
            Logits, (n, t, vocab_size); those at position i depend on tokens 0 to i only.

        Raises:
            UserError: If there are more tokens than the context holds.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise UserError(
                f"A sequence may have at most context={self.context} tokens, but this one has "
                f"{length}; cut it, or build the model with a larger context."
            )
        # Looked up sample by sample, not broadcast, so that a hook on the positions sees every
        # sample's own gradient.
        ids = torch.arange(length, device=tokens.device).expand(len(tokens), -1)
        x = self.dropout(self.tokens(tokens) + self.positions(ids))
        return self.head(self.norm(self.blocks(x)))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        scale = (2 * len(self.blocks)) ** -0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            for projection in block.residual_projections:
                nn.init.normal_(projection.weight, std=0.02 * scale)


def gpt(
    vocab_size: int = 256,
    *,
    context: int = 64,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    tie_weights: bool = True,
) -> GPT:
    """Make a language model in the style of GPT-2 (Radford et al. 2019).

    Pre-norm blocks with GELU, learned positions, and a head that shares the token embeddings'
    weight. Weights are drawn from N(0, 0.02^2), those of the two layers of a block that add to
    the residual stream from N(0, 0.02^2 / (2 depth)); biases are 0.

    Args:
        vocab_size: Number of tokens there are; 256 for bytes.
        context: Largest number of tokens in a sequence.
        dim: Numbers a token; a multiple of `heads`.
        depth: Number of blocks.
        heads: Number of attention heads.
        dropout: Dropout rate in [0, 1), on the embeddings and after every dense layer but qkv.
        tie_weights: Share one parameter between the token embeddings and the head.

    Returns:
        The network, which maps token indices (n, t) to logits (n, t, vocab_size).

    Raises:
        UserError: If a size is not positive, the heads do not divide `dim`, or the dropout rate
            is out of range.

    Example:
        >>> import torch
        >>> gpt(dim=16, depth=1)(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 5, 256])
    """
    require_sizes(vocab_size=vocab_size, context=context, dim=dim, depth=depth, heads=heads)
    require_dropout(dropout)
    require_heads(dim, heads)
    return GPT(
        vocab_size,
        context=context,
        dim=dim,
        depth=depth,
        heads=heads,
        dropout=dropout,
        tie_weights=tie_weights,
    )
