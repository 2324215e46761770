"""The U-Net's building blocks: residual block, self-attention block, up- and downsampling.

``B`` is the batch size, ``C`` the channels, ``E`` the width of the time embedding; ``...`` are one to three spatial
dimensions.
"""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import Context, SpatialTransformer, attend
from ldm.modules.diffusionmodules.util import avg_pool_nd, checkpoint, conv_nd, normalization, zero_module
from ldm.modules.layers import Dropout, Linear, UpsamplingConv2d, linear


class Upsample(nn.Module):
    """Doubles the size by nearest-neighbour upsampling, then optionally convolves. In 3-D, the first size is kept."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.scale = (1.0, 2.0, 2.0) if dims == 3 else (2.0,) * dims
        self.conv: nn.Module | None = None
        if use_conv:
            out_channels = out_channels or channels
            kind = UpsamplingConv2d if dims == 2 else functools.partial(conv_nd, dims)
            self.conv = kind(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, h, w] to [B, C', 2h, 2w]."""
        if not isinstance(self.conv, UpsamplingConv2d):
            x = F.interpolate(x, scale_factor=self.scale, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Halves the size with a strided convolution or average pooling. In 3-D, the first size is kept."""

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None) -> None:
        super().__init__()
        stride = (1, 2, 2) if dims == 3 else 2
        self.channels = channels
        self.op = (
            conv_nd(dims, channels, out_channels or channels, 3, stride=stride, padding=1)
            if use_conv
            else avg_pool_nd(dims, kernel_size=stride, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, h, w] to [B, C', h/2, w/2]."""
        return self.op(x)


class ResBlock(nn.Module):
    """Residual block of two convolutions with the time embedding between them (Dhariwal & Nichol 2021, section 3).

    Args:
        channels: number of input channels.
        emb_channels: width E of the time embedding.
        dropout: dropout rate before the second convolution.
        out_channels: number of output channels; by default that of the input.
        use_scale_shift_norm: scale and shift the output of the second norm by the time embedding, instead of adding the
            embedding before that norm.
        dims: number of spatial dimensions.
        use_checkpoint: recompute the block in the backward pass to save memory.
        up: double the spatial size inside the block.
        down: halve the spatial size inside the block.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.use_scale_shift_norm = use_scale_shift_norm
        self.use_checkpoint = use_checkpoint
        self.in_layers = nn.Sequential(
            normalization(channels), nn.SiLU(inplace=True), conv_nd(dims, channels, out_channels, 3, padding=1)
        )
        self.resample: nn.Module | None = None
        if up or down:
            self.resample = Upsample(channels, False, dims) if up else Downsample(channels, False, dims)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), Linear(emb_channels, 2 * out_channels if use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            normalization(out_channels),
            nn.SiLU(inplace=True),
            Dropout(dropout),
            zero_module(conv_nd(dims, out_channels, out_channels, 3, padding=1)),
        )
        same = out_channels == channels
        self.skip_connection = nn.Identity() if same else conv_nd(dims, channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Maps x [B, C, ...] with the time embedding [B, E] to [B, C', ...]."""
        return checkpoint(self._forward, x, emb, enabled=self.use_checkpoint)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = activation(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        time = self.emb_layers(emb)
        time = time.view(*time.shape, *(1,) * (h.ndim - 2))
        if self.use_scale_shift_norm:
            norm, activation, dropout, conv = self.out_layers
            scale, shift = time.chunk(2, dim=1)
            h = conv(dropout(activation(norm(h) * (1 + scale) + shift)))
        else:
            h = self.out_layers(h + time)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over all positions of a feature map.

    Args:
        channels: number of channels of the feature map, a multiple of the number of heads.
        num_heads: number of attention heads.
        use_checkpoint: recompute the block in the backward pass to save memory.
        use_new_attention_order: order the channels of ``qkv`` by q, k, v first and by head second; False orders them by
            head first, as in all released weights.

    Raises:
        ValueError: the number of channels is no multiple of the number of heads.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"got {num_heads} heads for {channels} channels, expected a divisor; change num_heads")
        self.num_heads = num_heads
        self.use_checkpoint = use_checkpoint
        self.use_new_attention_order = use_new_attention_order
        self.norm = normalization(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of x [B, C, ...] and the attention's output, of the same shape."""
        return checkpoint(self._forward, x, enabled=self.use_checkpoint)

    def _forward(self, x: Tensor) -> Tensor:
        # The 1x1 convolutions are computed as linear layers, so that tokens stay contiguous, as fast kernels require.
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = linear(tokens, self.qkv.weight.squeeze(-1), self.qkv.bias)
        if self.use_new_attention_order:
            q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        else:
            q, k, v = qkv.unflatten(-1, (self.num_heads, 3, -1)).unbind(3)
        out = linear(attend(q, k, v).flatten(2), self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return x + out.transpose(1, 2).reshape(x.shape)


class TimestepEmbedSequential(nn.Sequential):
    """A sequence of layers, each of which gets the time embedding, the context, or neither, depending on its class."""

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Context = None
    ) -> Tensor:
        """Maps x [B, C, ...] with the time embedding [B, E] and the context to [B, C', ...]."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x
