"""Encoder and decoder of the first stage (Esser et al. 2021, table 7; Rombach et al. 2022, appendix G).

Attribute names are those of CompVis' checkpoints. Images are ``[B, 3, H, W]``, features ``[B, C, h, w]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.attention import attend
from ldm.modules.layers import Conv2d, GroupNorm, UpsamplingConv2d, channels_last


def normalize(channels: int) -> nn.GroupNorm:
    """Returns the group norm of the first stages: 32 groups, eps 1e-6."""
    return GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after a norm, with a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = normalize(in_channels)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalize(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, out_channels, h, w]``."""
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(self.dropout(F.silu(self.norm2(h), inplace=True)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, with a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = normalize(channels)
        self.q = Conv2d(channels, channels, 1)
        self.k = Conv2d(channels, channels, 1)
        self.v = Conv2d(channels, channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape."""
        h = self.norm(x)
        # Fused kernels need contiguous tensors. Without these kernels, the scores of 64x64 positions take 67 MB.
        q, k, v = (conv(h).flatten(2).mT.contiguous().unsqueeze(2) for conv in (self.q, self.k, self.v))
        return x + self.proj_out(attend(q, k, v).squeeze(2).transpose(1, 2).reshape(x.shape))


def make_attention(channels: int, attn_type: str) -> nn.Module:
    """Returns the attention block with the name ``attn_type``: ``vanilla`` or ``none``."""
    if attn_type == "vanilla":
        return AttnBlock(channels)
    if attn_type == "none":
        return nn.Identity()
    raise ValueError(f"attn_type: expected 'vanilla' or 'none', got '{attn_type}'")


class Downsample(nn.Module):
    """Halves the resolution; the convolution pads at the right and bottom only."""

    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, C, h // 2, w // 2]``."""
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution by nearest-neighbour upsampling, then convolves."""

    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = UpsamplingConv2d(channels, channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, C, 2h, 2w]``."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.conv is None else self.conv(x)


class Level(nn.Module):
    """The blocks of a resolution, and the layer that leads to the next one; ``attn`` is empty without attention."""

    def __init__(self, channels: Sequence[int], dropout: float, attn_type: str | None) -> None:
        super().__init__()
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None
        self.block = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in zip(channels, channels[1:], strict=False))
        self.attn = nn.ModuleList(make_attention(c, attn_type) for c in channels[1:]) if attn_type else nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, channels[-1], h, w]``, resampled if the level has a downsampling or upsampling layer."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, dropout: float, attn_type: str) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = make_attention(channels, attn_type)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Maps images to latent features, with ``len(ch_mult) - 1`` halvings of the size. The arguments are CompVis'.

    Args:
        ch: channels of the first level.
        ch_mult: channels of each level as a multiple of ``ch``. The size is halved after each level but the last.
        num_res_blocks: residual blocks of each level.
        attn_resolutions: sides, in pixels, of the feature maps that get attention; they count from ``resolution``.
        in_channels: channels of an image.
        resolution: side of an image in pixels; it only says which levels ``attn_resolutions`` means.
        z_channels: channels of the features.
        out_ch: channels of the image that the decoder makes.
        double_z: twice the channels of the features, for the mean and the variance of a KL first stage.
        dropout: probability that a feature is dropped in training.
        resamp_with_conv: a convolution with each change of the size.
        attn_type: the kind of attention: ``vanilla`` or ``none``.
        tanh_out: the decoder ends in a hyperbolic tangent.
    """

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        in_channels: int,
        resolution: int,
        z_channels: int,
        out_ch: int = 3,  # noqa: ARG002 (one ddconfig serves encoder and decoder)
        double_z: bool = True,
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        attn_type: str = "vanilla",
        tanh_out: bool = False,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.conv_in = Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels, last = ch, len(ch_mult) - 1
        for i, multiplier in enumerate(ch_mult):
            width = ch * multiplier
            kind = attn_type if resolution >> i in attn_resolutions else None
            level = Level([channels, *[width] * num_res_blocks], dropout, kind)
            if i != last:
                level.downsample = Downsample(width, resamp_with_conv)
            self.down.append(level)
            channels = width
        self.mid = Middle(channels, dropout, attn_type)
        self.norm_out = normalize(channels)
        self.conv_out = Conv2d(channels, 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, z, h, w]`` (``2 z`` channels with ``double_z``) for images ``[B, in_channels, H, W]``."""
        h = self.conv_in(channels_last(x))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h)), inplace=True)).contiguous()


class Decoder(nn.Module):
    """Maps latent features to images, the reverse of :class:`Encoder` with one more residual block at each level."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        resolution: int,
        z_channels: int,
        in_channels: int = 3,  # noqa: ARG002 (one ddconfig serves encoder and decoder)
        double_z: bool = True,  # noqa: ARG002
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        attn_type: str = "vanilla",
        tanh_out: bool = False,
    ) -> None:
        super().__init__()
        self.tanh_out = tanh_out
        channels = ch * ch_mult[-1]
        self.conv_in = Conv2d(z_channels, channels, 3, padding=1)
        self.mid = Middle(channels, dropout, attn_type)
        levels: list[Level] = []
        for i in reversed(range(len(ch_mult))):
            width = ch * ch_mult[i]
            kind = attn_type if resolution >> i in attn_resolutions else None
            level = Level([channels, *[width] * (num_res_blocks + 1)], dropout, kind)
            if i != 0:
                level.upsample = Upsample(width, resamp_with_conv)
            levels.insert(0, level)
            channels = width
        self.up = nn.ModuleList(levels)
        self.norm_out = normalize(channels)
        self.conv_out = Conv2d(channels, out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Returns images ``[B, out_ch, H, W]`` for features ``[B, z_channels, h, w]``."""
        h = self.mid(self.conv_in(channels_last(z)))
        for level in reversed(self.up):
            h = level(h)
        image = self.conv_out(F.silu(self.norm_out(h), inplace=True)).contiguous()
        return image.tanh() if self.tanh_out else image
