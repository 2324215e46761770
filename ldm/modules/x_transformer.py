"""The transformer over text tokens for text-conditional latent diffusion (Rombach et al. 2022, appendix E.2.1).

These are the parts of the x-transformers package that released checkpoints use, with the same names of weights: encoder
layers with a norm before each block. ``B`` is the batch size, ``L`` the number of tokens, ``D`` the width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.modules.attention import attend


class Attention(nn.Module):
    """Self-attention with ``heads`` heads of width ``dim_head``."""

    def __init__(self, dim: int, heads: int = 8, dim_head: int = 64) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, L, D]`` to the same shape."""
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.to_q, self.to_k, self.to_v))
        return self.to_out(attend(q, k, v).flatten(2))


class FeedForward(nn.Module):
    """Perceptron for each token, with a hidden layer of four times the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The dropout has no effect; it is there for the number in the second layer's name.
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU()), nn.Dropout(0.0), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, L, D]`` to the same shape."""
        return self.net(x)


class Encoder(nn.Module):
    """``depth`` pairs of self-attention and perceptron, each with a norm before it and a skip connection."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList()
        for _ in range(depth):
            self.layers += [nn.ModuleList([nn.LayerNorm(dim), block]) for block in (Attention(dim), FeedForward(dim))]

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, L, D]`` to the same shape."""
        for layer in self.layers:
            norm, block = layer.children()
            x = x + block(norm(x))
        return x


class AbsolutePositionalEmbedding(nn.Module):
    """A learned vector for each place."""

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, dim)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[L, D]`` for a tensor ``[B, L, ...]``."""
        return self.emb(torch.arange(x.shape[1], device=x.device))


class TransformerWrapper(nn.Module):
    """Transformer with embeddings of tokens and places, which returns vectors or logits of tokens.

    Args:
        num_tokens: size of the vocabulary.
        max_seq_len: the largest number of tokens in a text.
        attn_layers: the layers of the transformer.
        emb_dropout: dropout rate of the layers' input.
    """

    def __init__(self, num_tokens: int, max_seq_len: int, attn_layers: Encoder, emb_dropout: float = 0.0) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.token_emb = nn.Embedding(num_tokens, attn_layers.dim)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        self.pos_emb = AbsolutePositionalEmbedding(attn_layers.dim, max_seq_len)
        self.emb_dropout = nn.Dropout(emb_dropout)
        self.attn_layers = attn_layers
        self.norm = nn.LayerNorm(attn_layers.dim)
        self.to_logits = nn.Linear(attn_layers.dim, num_tokens)

    def forward(self, tokens: Tensor, return_embeddings: bool = False) -> Tensor:
        """Returns logits ``[B, L, num_tokens]``, or vectors ``[B, L, D]``, for tokens ``[B, L] int64``.

        Raises:
            ValueError: more tokens than there are places.
        """
        if tokens.shape[1] > self.max_seq_len:
            raise ValueError(f"got {tokens.shape[1]} tokens, expected at most max_seq_len={self.max_seq_len}; cut them")
        x = self.emb_dropout(self.token_emb(tokens) + self.pos_emb(tokens))
        x = self.norm(self.attn_layers(x))
        return x if return_embeddings else self.to_logits(x)
