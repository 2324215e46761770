"""Attention over tokens: the function that computes it, and the transformer for a U-Net's cross-attention.

``B`` batch, ``N`` tokens of the image (N = h * w), ``L`` tokens of the context, ``H`` heads, ``D`` width.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import checkpoint, zero_module
from ldm.modules.layers import INTEL, Conv2d, GroupNorm, Linear, attend_in_parts, can_attend_in_parts, linear

LOG = logging.getLogger(__name__)


class KeysValues(NamedTuple):
    """Keys and values of a context in one cross-attention."""

    keys: Tensor
    """[B, L, H, D]."""
    values: Tensor
    """[B, L, H, D]."""


Tokens = Tensor | Sequence[Tensor]
"""Context tokens [B, L, D]; a list has one tensor for each block of a transformer."""
Context = Tokens | Sequence[KeysValues] | None
"""The context of a transformer: tokens, or the keys and values of its blocks."""


class ProjectedContext(NamedTuple):
    """The keys and values of a context in all cross-attentions of a U-Net, see :func:`project_context`."""

    layers: Sequence[Sequence[KeysValues] | None]
    """For each layer of the U-Net in order, the keys and values of its transformer, or None without a transformer."""


# On a CPU in bfloat16 with at most this many scores (queries x keys) per head, plain matrix products are 2 to 8 times
# faster than the fused kernel in a forward and backward pass. In a forward pass alone they are 1.2 to 2.5 times faster,
# but slower on Intel's processors. In float32 and float16 they are slower. benchmarks/attention.py measures it.
PLAIN_SCORES = 256 * 256

# The dtypes that xformers has kernels for.
XFORMERS_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# With more scores than this and without gradients, it is fastest to compute head by head, except on Intel's processors.
PARTED_SCORES = 512 * 512


@functools.cache
def _xformers_attention() -> Callable[..., Tensor] | None:
    """Returns xformers' memory-efficient attention, or None if it is not installed or has no kernels for this GPU."""
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError:
        return None
    q = torch.zeros(1, 8, 1, 32, dtype=torch.float16, device="cuda")
    try:  # a wheel for another version of CUDA can be installed and imported without an error
        memory_efficient_attention(q, q, q)
    except (NotImplementedError, RuntimeError) as error:
        LOG.warning(
            "xformers is installed and has no kernels for this GPU; using torch's: %s", str(error).split("\n")[0]
        )
        return None
    return memory_efficient_attention


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) v, computed by xformers on CUDA if it has kernels there, else by torch.

    The environment variable ``LDM_ATTENTION`` forces one implementation: ``plain`` (matrix products), ``sdpa`` (torch's
    fused kernels), or on CUDA ``xformers`` (an error if it has no kernels). xformers has no kernels for float64 or for
    other devices, which use torch's. A CPU in bfloat16 uses matrix products if there are few scores. Causal attention
    uses torch's kernels.

    Args:
        q: queries [B, N, H, D].
        k: keys [B, L, H, D].
        v: values [B, L, H, D].
        causal: the queries are the last N of L places, and none attends to the keys of later places.

    Returns:
        [B, N, H, D], in the dtype of the queries.

    Raises:
        ValueError: unknown ``LDM_ATTENTION``, or ``xformers`` without kernels.
    """
    choice = os.environ.get("LDM_ATTENTION", "")
    if choice not in ("", "plain", "sdpa", "xformers"):
        raise ValueError(f"LDM_ATTENTION is '{choice}', expected 'xformers', 'sdpa' or 'plain'; correct or unset it")
    k, v = k.to(q.dtype), v.to(q.dtype)  # a context that was projected outside of autocast has another dtype
    causal = causal and q.shape[1] > 1  # the last place attends to all
    if q.is_cuda and choice in ("", "xformers") and not causal:
        fast = _xformers_attention()
        if fast is None and choice:
            raise ValueError(
                "LDM_ATTENTION is 'xformers', expected it installed with kernels for this GPU; pip install the one of "
                "this torch, or unset it"
            )
        if fast is not None and (choice or q.dtype in XFORMERS_DTYPES):
            return fast(q, k, v)
    many = q.shape[1] * k.shape[1] > PARTED_SCORES
    if many and not choice and not causal and can_attend_in_parts(q, k, v):
        return attend_in_parts(q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    few = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] * k.shape[2] <= PLAIN_SCORES
    plain = few and (torch.is_grad_enabled() or not INTEL)
    n, length = q.shape[2], k.shape[2]
    seen = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n) if causal else None
    if choice == "plain" or (plain and choice != "sdpa"):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weights = torch.softmax(scores if seen is None else scores.masked_fill_(~seen, -torch.inf), dim=-1)
        return (weights.to(v.dtype) @ v).transpose(1, 2)  # autocast takes the softmax in float32
    if n == length:  # without a mask, torch's fastest kernels take it
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)


class GEGLU(nn.Module):
    """Linear layer with a GELU gate (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., dim_in] to [..., dim_out]."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two-layer perceptron applied to every token."""

    def __init__(
        self, dim: int, dim_out: int | None = None, mult: int = 4, glu: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = mult * dim
        first = GEGLU(dim, inner) if glu else nn.Sequential(Linear(dim, inner), nn.GELU())
        self.net = nn.Sequential(first, nn.Dropout(dropout), Linear(inner, dim_out or dim))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., dim] to [..., dim_out]."""
        return self.net(x)


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to a context or, without a context, to the tokens themselves."""

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = Linear(query_dim, inner, bias=False)
        self.to_k = Linear(context_dim, inner, bias=False)
        self.to_v = Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(Linear(inner, query_dim), nn.Dropout(dropout))

    def project(self, context: Tensor) -> KeysValues:
        """Returns the keys and values of a context [B, L, context_dim], which ``forward`` takes in its place."""
        split = (self.heads, -1)
        return KeysValues(self.to_k(context).unflatten(-1, split), self.to_v(context).unflatten(-1, split))

    def forward(self, x: Tensor, context: Tensor | KeysValues | None = None, *, causal: bool = False) -> Tensor:
        """Returns [B, N, query_dim] for tokens x [B, N, query_dim] and a context [B, L, context_dim], or its keys.

        With ``causal``, the tokens are the last N places of the context, and none attends to later places.
        """
        if context is None and self._at_once(x):
            weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
            q, k, v = linear(x, weight).unflatten(-1, (3, self.heads, -1)).unbind(-3)
            return self.to_out(attend(q, k, v, causal=causal).flatten(2))
        q = self.to_q(x).unflatten(-1, (self.heads, -1))
        seen = context if isinstance(context, KeysValues) else self.project(x if context is None else context)
        return self.to_out(attend(q, seen.keys, seen.values, causal=causal).flatten(2))

    def _at_once(self, x: Tensor) -> bool:
        """Whether one product for queries, keys and values is faster: in training on a CPU, unless a user replaced one.

        In sampling, joining the weights would cost as much as it saves.
        """
        layers = (self.to_q, self.to_k, self.to_v)
        return torch.is_grad_enabled() and x.device.type == "cpu" and all(type(layer) is Linear for layer in layers)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with its LayerNorm and residual."""

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        dropout: float = 0.0,
        context_dim: int | None = None,
        gated_ff: bool = True,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, heads=n_heads, dim_head=d_head, dropout=dropout)
        self.ff = FeedForward(dim, glu=gated_ff, dropout=dropout)
        self.attn2 = CrossAttention(dim, context_dim, heads=n_heads, dim_head=d_head, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, context: Tensor | KeysValues | None = None) -> Tensor:
        """Returns [B, N, dim] for tokens x [B, N, dim] and a context [B, L, context_dim], or its keys."""
        return checkpoint(self._forward, x, context, enabled=self.use_checkpoint)

    def _forward(self, x: Tensor, context: Tensor | KeysValues | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer over the pixels of a feature map, conditioned on context tokens.

    Source: Rombach et al. 2022 (latent diffusion), section 3.3.

    Args:
        in_channels: channels of the feature map, a multiple of 32.
        n_heads: attention heads.
        d_head: channels of each head.
        depth: number of blocks.
        dropout: rate inside the blocks.
        context_dim: width of the context tokens, or a list with one width for each block; None for self-attention.
        use_checkpoint: recompute the blocks in the backward pass to save memory.

    Raises:
        ValueError: a list of context widths whose length is neither 1 nor ``depth``.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | Sequence[int] | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        inner = n_heads * d_head
        widths = list(context_dim) if isinstance(context_dim, Sequence) else [context_dim]
        if len(widths) not in (1, depth):
            raise ValueError(
                f"context_dim lists {len(widths)} widths, expected one for each of {depth} blocks, or one int"
            )
        widths = widths * depth if len(widths) == 1 else widths
        self.norm = GroupNorm(32, in_channels, eps=1e-6)
        self.proj_in = Conv2d(in_channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, n_heads, d_head, dropout, width, use_checkpoint=use_checkpoint)
            for width in widths
        )
        self.proj_out = zero_module(Conv2d(inner, in_channels, 1))

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Returns x [B, C, h, w] plus the output of the transformer.

        Args:
            x: feature map [B, C, h, w].
            context: tokens [B, L, D] for all blocks, a list with one such tensor for all or for each block, or the
                result of ``project``.

        Raises:
            ValueError: a list whose length is neither 1 nor the number of blocks.
        """
        h, w = x.shape[-2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2).contiguous()
        for block, seen in zip(self.transformer_blocks, self._for_each(context), strict=True):
            tokens = block(tokens, seen)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, (h, w)))

    def project(self, context: Tokens) -> list[KeysValues]:
        """Returns each block's keys and values of the tokens that ``forward`` takes."""
        pairs: Any = zip(self.transformer_blocks, self._for_each(context), strict=True)
        return [block.attn2.project(tokens) for block, tokens in pairs]

    def _for_each(self, context: Context) -> list[Any]:
        n = len(self.transformer_blocks)
        contexts = [context] if context is None or isinstance(context, Tensor) else list(context)
        if len(contexts) not in (1, n):
            raise ValueError(f"got {len(contexts)} contexts, expected one for each of {n} blocks, or one for all")
        return contexts * n if len(contexts) == 1 else contexts


def project_context(layers: Iterable[nn.Sequential], context: Tokens) -> ProjectedContext:
    """Returns a context's keys and values in every transformer of a U-Net's layers.

    They are valid until the weights change, so compute them for each sampling run.
    """
    transformers = ([part for part in layer if isinstance(part, SpatialTransformer)] for layer in layers)
    return ProjectedContext([found[0].project(context) if found else None for found in transformers])


def list_context_widths(context_dim: int | Sequence[int] | None) -> list[int]:
    """Returns the context widths as a list, which is empty without a context."""
    if context_dim is None:
        return []
    return [context_dim] if isinstance(context_dim, int) else [int(width) for width in context_dim]


def check_context(context: Tokens | ProjectedContext | None, widths: Sequence[int], batch: int) -> None:
    """Checks a context against the widths a network was built for.

    Raises:
        ValueError: a context for a network without cross-attention, or one of a wrong rank, batch or width.
    """
    if context is None:
        return
    if isinstance(context, ProjectedContext):
        sizes = {len(seen.keys) for layer in context.layers for seen in layer or ()}
        if sizes - {batch}:
            raise ValueError(f"context was projected for a batch of {max(sizes)}, expected {batch}; project it anew")
        return
    tensors = [context] if isinstance(context, torch.Tensor) else list(context)
    expected = list(widths) * len(tensors) if len(widths) == 1 else list(widths)
    if not expected:
        raise ValueError(
            "got a context for a network without cross-attention; set use_spatial_transformer and context_dim"
        )
    for tensor, width in zip(tensors, expected, strict=False):
        if tensor.ndim != 3 or tensor.shape[0] != batch or tensor.shape[2] != width:
            raise ValueError(f"context has shape {list(tensor.shape)}, expected [{batch}, L, {width}]")
