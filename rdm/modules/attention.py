"""The transformer over codes with cross-attention to neighbours (Blattmann et al. 2022, section 3.1 and appendix).

``B`` is the batch size, ``N`` the number of input tokens, ``T`` of places in a sequence, ``L`` of context tokens, ``H``
of heads, and ``D`` the width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.modules.attention import BasicTransformerBlock, CrossAttention, KeysValues
from ldm.modules.diffusionmodules.util import checkpoint
from ldm.modules.layers import linear


class Past:
    """Key-value cache of a causal transformer, so that each token is passed to it only once.

    A cache is valid for one batch, and until the weights change.

    Args:
        size: number of places in a sequence, T.

    Attributes:
        seen: number of tokens that are cached, which the transformer updates.
    """

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self._kept: dict[nn.Module, KeysValues] = {}

    def extend(self, owner: nn.Module, new: KeysValues) -> KeysValues:
        """Adds an attention's new keys and values, and returns all of them, ``[B, seen + N, H, D]``, in order."""
        end = self.seen + new.keys.shape[1]
        if owner not in self._kept:
            batch, _, heads, width = new.keys.shape
            shape = (batch, self.size, heads, width)
            self._kept[owner] = KeysValues(new.keys.new_empty(shape), new.values.new_empty(shape))
        kept = self._kept[owner]
        kept.keys[:, self.seen : end], kept.values[:, self.seen : end] = new.keys, new.values
        return KeysValues(kept.keys[:, :end], kept.values[:, :end])


class Block(BasicTransformerBlock):
    """Self-attention, cross-attention (without a context, self-attention again) and feed-forward."""

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        dropout: float = 0.0,
        context_dim: int | None = None,
        *,
        use_checkpoint: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__(dim, n_heads, d_head, dropout, context_dim, use_checkpoint=use_checkpoint)
        self.causal = causal

    def forward(self, x: Tensor, context: Tensor | KeysValues | None = None, past: Past | None = None) -> Tensor:
        """Returns ``[B, N, D]`` for tokens ``[B, N, D]`` and a context ``[B, L, context_dim]``, or its keys."""
        return checkpoint(self._see, x, context, past, enabled=self.use_checkpoint)

    def _see(self, x: Tensor, context: Tensor | KeysValues | None, past: Past | None) -> Tensor:
        x = x + self._see_itself(self.attn1, self.norm1(x), past)
        looked = self.norm2(x)
        x = x + (self._see_itself(self.attn2, looked, past) if context is None else self.attn2(looked, context))
        return x + self.ff(self.norm3(x))

    def _see_itself(self, attention: CrossAttention, x: Tensor, past: Past | None) -> Tensor:
        seen = attention.project(x)
        return attention(x, seen if past is None else past.extend(attention, seen), causal=self.causal)


class Pointwise(nn.Conv1d):
    """A 1x1 convolution computed as a linear layer, with the weight ``[D', D, 1]`` that checkpoints hold."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, N, D]`` to ``[B, N, D']``."""
        return linear(x, self.weight[..., 0], self.bias)


class RetrievalPatchTransformer(nn.Module):
    """Transformer over a sequence of codes or vectors, with a context. The arguments are CompVis'.

    Args:
        in_channels: number of codes, including special ones; with ``continuous``, the width of the vectors.
        n_heads: attention heads.
        d_head: channels of each head.
        depth: number of blocks.
        context_dim: width of the context tokens; None without a context.
        dropout: rate inside the blocks.
        positional_encodings: add a learned vector for each place.
        sequence_length: number of places, T.
        residual: add the input to the output.
        checkpoint: recompute the blocks in the backward pass to save memory.
        out_channels: width of the output; by default ``in_channels``.
        cross_attend: whether there is a context.
        causal: whether a token attends to itself and earlier tokens only.
        continuous: whether the input consists of vectors instead of codes.

    Raises:
        ValueError: options that contradict each other.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        context_dim: int | None = None,
        dropout: float = 0.0,
        positional_encodings: bool = False,
        sequence_length: int | None = None,
        residual: bool = False,
        checkpoint: bool = False,
        out_channels: int | None = None,
        cross_attend: bool = False,
        causal: bool = False,
        continuous: bool = True,
    ) -> None:
        super().__init__()
        if cross_attend and context_dim is None:
            raise ValueError("cross_attend: got true without context_dim, expected the width of the context")
        if positional_encodings and sequence_length is None:
            raise ValueError("positional_encodings: got true without sequence_length, expected the number of places")
        if residual and (not continuous or out_channels not in (None, in_channels)):
            raise ValueError("residual: got true, expected continuous inputs and outputs of one width with it")
        dim = n_heads * d_head
        self.in_channels, self.out_channels = in_channels, out_channels or in_channels
        self.context_dim, self.sequence_length = context_dim, sequence_length
        self.residual, self.causal, self.continuous = residual, causal, continuous
        if continuous:
            self.norm = nn.LayerNorm(in_channels)
        self.proj_in = Pointwise(in_channels, dim, 1) if continuous else nn.Embedding(in_channels, dim)
        self.positional_encoding = None
        if positional_encodings:
            self.positional_encoding = nn.Parameter(torch.randn(dim, sequence_length or 0) / dim**0.5)
        self.transformer_blocks = nn.ModuleList(
            Block(dim, n_heads, d_head, dropout, context_dim, use_checkpoint=checkpoint, causal=causal)
            for _ in range(depth)
        )
        self.proj_out = Pointwise(dim, self.out_channels, 1)

    def project_context(self, context: Tensor) -> list[KeysValues]:
        """Returns each block's keys and values of context tokens ``[B, L, context_dim]``, which ``forward`` takes.

        They are valid until the weights change.

        Raises:
            ValueError: the context has another width.
        """
        if context.ndim != 3 or context.shape[2] != self.context_dim:
            raise ValueError(f"context has shape {list(context.shape)}, expected [B, L, {self.context_dim}]")
        return [block.attn2.project(context) for block in self.transformer_blocks]  # type: ignore[union-attr,operator]

    def forward(
        self, x: Tensor, context: Tensor | Sequence[KeysValues] | None = None, past: Past | None = None
    ) -> Tensor:
        """Returns ``[B, N, out_channels]``; in an autoregressive model, the logits of the code after each token.

        Args:
            x: codes ``[B, N] int64``, or vectors ``[B, N, in_channels]``.
            context: tokens ``[B, L, context_dim]``, or the result of :meth:`project_context` for them.
            past: cache of the earlier tokens, to which x is added.

        Raises:
            ValueError: a missing or superfluous context, or more tokens than places.
        """
        if (context is None) != (self.context_dim is None):
            got = "no context" if context is None else "a context"
            raise ValueError(f"got {got}, which does not fit context_dim={self.context_dim}")
        if past is not None and not self.causal:
            raise ValueError("got a past, expected none: the network is not causal")
        start = past.seen if past is not None else 0
        end = start + x.shape[1]
        if self.sequence_length is not None and end > self.sequence_length:
            raise ValueError(f"got {end} tokens, expected at most sequence_length={self.sequence_length}")
        seen = [None] * len(self.transformer_blocks) if context is None else context
        seen = self.project_context(seen) if isinstance(seen, Tensor) else seen
        h = self.proj_in(self.norm(x) if self.continuous else x)
        if self.positional_encoding is not None:
            h = h + self.positional_encoding[:, start:end].T.to(h.dtype)
        for block, looked_at in zip(self.transformer_blocks, seen, strict=True):
            h = block(h, looked_at, past)
        if past is not None:
            past.seen = end
        out = self.proj_out(h)
        return x + out if self.residual else out
