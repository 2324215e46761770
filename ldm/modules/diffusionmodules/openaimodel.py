"""The denoising U-Net: residual blocks, self-attention, and cross-attention to a context.

Dhariwal & Nichol 2021 with the cross-attention of Rombach et al. 2022. CompVis' two repositories compute it differently
in two places; this class follows latent-diffusion, and its subclass in ``rdm`` retrieval-augmented-diffusion-models.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm.modules.attention import (
    ProjectedContext,
    SpatialTransformer,
    Tokens,
    check_context,
    list_context_widths,
    project_context,
)
from ldm.modules.diffusionmodules.blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    TimestepEmbedSequential,
    Upsample,
)
from ldm.modules.diffusionmodules.util import conv_nd, normalization, timestep_embedding, zero_module
from ldm.modules.layers import Linear, channels_last

MakeLayer = Callable[..., nn.Module]


def split_heads(channels: int, num_heads: int, num_head_channels: int) -> tuple[int, int]:
    """Returns (heads, channels of a head); ``num_head_channels`` wins over ``num_heads`` unless it is -1.

    Raises:
        ValueError: the channels cannot be divided into such heads.
    """
    divisor = num_heads if num_head_channels == -1 else num_head_channels
    if divisor < 1 or channels % divisor:
        name = "num_heads" if num_head_channels == -1 else "num_head_channels"
        raise ValueError(f"{name} is {divisor}, expected a divisor of {channels} channels; change it in unet_config")
    if num_head_channels == -1:
        return num_heads, channels // num_heads
    return channels // num_head_channels, num_head_channels


def make_transformer(channels: int, num_heads: int, num_head_channels: int, **options: Any) -> SpatialTransformer:
    """Returns the transformer for a feature map with these channels; options are SpatialTransformer's."""
    heads, width = split_heads(channels, num_heads, num_head_channels)
    return SpatialTransformer(channels, heads, width, **options)


def make_attention(channels: int, num_heads: int, num_head_channels: int, **options: Any) -> AttentionBlock:
    """Returns the attention block for a feature map with these channels; options are AttentionBlock's."""
    heads, _ = split_heads(channels, num_heads, num_head_channels)
    return AttentionBlock(channels, heads, **options)


def resamplers(res: MakeLayer, inside_blocks: bool, **options: Any) -> tuple[MakeLayer, MakeLayer]:
    """Returns the functions that make down- and upsampling layers; options are Downsample's and Upsample's."""
    if inside_blocks:
        return functools.partial(res, down=True), functools.partial(res, up=True)
    return functools.partial(Downsample, **options), functools.partial(Upsample, **options)


def check_options(
    use_spatial_transformer: bool,
    context_dim: int | Sequence[int] | None,
    num_heads: int,
    num_head_channels: int,
    use_fp16: bool,
    dims: int,
) -> None:
    """Checks options of the U-Net.

    Raises:
        ValueError: two options contradict each other, or one is unsupported.
    """
    if use_spatial_transformer != (context_dim is not None):
        raise ValueError(
            f"got use_spatial_transformer={use_spatial_transformer} with context_dim={context_dim}, "
            "expected both or neither; correct unet_config"
        )
    if num_heads == num_head_channels == -1:
        raise ValueError("got neither num_heads nor num_head_channels, expected one; add it to unet_config")
    if dims not in (1, 2, 3):
        raise ValueError(f"dims is {dims}, expected 1, 2 or 3; correct unet_config")
    if use_fp16:
        raise ValueError("use_fp16 is True, expected False; use the trainer's precision 16-mixed or torch.autocast")


class UNetModel(nn.Module):
    """Predicts the noise (or x0 or v) from x_t and the time, and optionally from context tokens and a class.

    Args:
        image_size: size of the latents in training, for information only; other sizes are possible.
        in_channels: channels of x_t and of a concatenated condition together.
        model_channels: width of the first level, a multiple of 32.
        out_channels: channels of the prediction.
        num_res_blocks: residual blocks of each level.
        attention_resolutions: downsampling factors (1, 2, 4 ...) of the levels with attention.
        dropout: rate inside the residual blocks.
        channel_mult: width of each level, in units of ``model_channels``.
        conv_resample: resample with convolutions instead of averaging and repetition.
        dims: number of spatial dimensions.
        num_classes: number of classes, if the labels ``y`` are an input.
        use_checkpoint: recompute blocks in the backward pass, which takes less memory and more time.
        use_fp16: must be False; use automatic mixed precision instead.
        num_heads: number of attention heads, if ``num_head_channels`` is -1.
        num_head_channels: channels of each attention head; wins over ``num_heads``.
        num_heads_upsample: number of heads in the decoder's attention blocks, if ``num_head_channels`` is -1 and the
            class has ``upsample_heads``; -1 for ``num_heads``.
        use_scale_shift_norm: scale and shift norms by the time embedding instead of adding it.
        resblock_updown: resample inside residual blocks.
        use_new_attention_order: channel order of attention blocks, see AttentionBlock.
        use_spatial_transformer: use transformers with cross-attention in place of attention blocks.
        transformer_depth: blocks of each transformer.
        context_dim: width of the context tokens; a list has one width, and one context, for each transformer block.
        n_embed: predict logits over this number of codes with ``id_predictor``, instead of an image.
        legacy: the rule of the first releases for heads; if False, ``num_heads_upsample`` has no effect.
        run_without_timestep_conditioning: accept ``timesteps=None``, which means time 0.

    Raises:
        ValueError: options contradict each other.
    """

    upsample_heads: ClassVar[bool] = True
    """Whether ``num_heads_upsample`` has an effect."""
    further: ClassVar[tuple[str, ...]] = ()
    """Names of modules that other code's U-Nets lack."""
    id_kernel: ClassVar[int] = 1
    """Kernel size of the convolution in ``id_predictor``, an odd number."""

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | Sequence[int] | None = None,
        n_embed: int | None = None,
        legacy: bool = True,
        run_without_timestep_conditioning: bool = False,
    ) -> None:
        super().__init__()
        check_options(use_spatial_transformer, context_dim, num_heads, num_head_channels, use_fp16, dims)
        self.image_size = image_size
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.model_channels = model_channels
        self.num_classes = num_classes
        self.n_embed = n_embed
        self.levels = len(channel_mult)
        self.context_widths = list_context_widths(context_dim)
        self.run_without_timestep_conditioning = run_without_timestep_conditioning

        emb_channels = 4 * model_channels
        res = functools.partial(
            ResBlock,
            emb_channels=emb_channels,
            dropout=dropout,
            use_scale_shift_norm=use_scale_shift_norm,
            dims=dims,
            use_checkpoint=use_checkpoint,
        )
        down, up = resamplers(res, resblock_updown, use_conv=conv_resample, dims=dims)
        attention: MakeLayer = functools.partial(make_attention, use_new_attention_order=use_new_attention_order)
        if use_spatial_transformer:
            attention = functools.partial(make_transformer, depth=transformer_depth, context_dim=self.context_widths)
        attention = functools.partial(
            attention, num_heads=num_heads, num_head_channels=num_head_channels, use_checkpoint=use_checkpoint
        )
        decoder_attention = attention
        if self.upsample_heads and legacy and not use_spatial_transformer and num_heads_upsample != -1:
            decoder_attention = functools.partial(attention, num_heads=num_heads_upsample)
        widths = [mult * model_channels for mult in channel_mult]

        self.time_embed = nn.Sequential(
            Linear(model_channels, emb_channels), nn.SiLU(), Linear(emb_channels, emb_channels)
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb_channels)
        stem = conv_nd(dims, in_channels, model_channels, 3, padding=1)
        levels = Levels(widths, num_res_blocks, frozenset(attention_resolutions), res)
        self.input_blocks, skips = down_path(levels, stem, model_channels, attention, down)
        self.middle_block = TimestepEmbedSequential(res(widths[-1]), attention(widths[-1]), res(widths[-1]))
        self.output_blocks = up_path(levels, skips, decoder_attention, up)
        head = conv_nd(dims, widths[0], out_channels, 3, padding=1)
        self.out = nn.Sequential(normalization(widths[0]), nn.SiLU(inplace=True), zero_module(head))
        if n_embed is not None:
            to_logits = conv_nd(dims, widths[0], n_embed, self.id_kernel, padding=self.id_kernel // 2)
            self.id_predictor = nn.Sequential(normalization(widths[0]), to_logits)

    def project_context(self, context: Tokens) -> ProjectedContext:
        """Returns the keys and values of context tokens, which ``forward`` accepts until the weights change.

        Raises:
            ValueError: the context does not fit the model.
        """
        batch = len(context) if isinstance(context, Tensor) else len(context[0])
        check_context(context, self.context_widths, batch)
        return project_context([*self.input_blocks, self.middle_block, *self.output_blocks], context)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tokens | ProjectedContext | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Returns the prediction [B, out_channels, h, w], or logits [B, n_embed, h, w].

        Args:
            x: noisy latents [B, in_channels, h, w]; h and w multiples of 2 ** (levels - 1).
            timesteps: [B] int64 in [0, T), or fractional.
            context: tokens [B, L, D], a list of such tensors, or the result of ``project_context``.
            y: class labels [B] int64, if and only if the model was built with ``num_classes``.

        Raises:
            ValueError: an input does not fit the model.
        """
        self._check_inputs(x, timesteps, context, y)
        if timesteps is None:
            timesteps = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        time = timestep_embedding(timesteps, self.model_channels)
        emb = self.time_embed(time.to(next(self.time_embed.parameters()).dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        h = channels_last(x)
        skips = []
        seen = iter(context.layers) if isinstance(context, ProjectedContext) else itertools.repeat(context)
        for block in self.input_blocks:
            h = block(h, emb, next(seen))
            skips.append(h)
        h = self.middle_block(h, emb, next(seen))
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, next(seen))
        return (self.out if self.n_embed is None else self.id_predictor)(h).contiguous()

    def _check_inputs(
        self, x: Tensor, timesteps: Tensor | None, context: Tokens | ProjectedContext | None, y: Tensor | None
    ) -> None:
        if x.shape[1] != self.in_channels:
            raise ValueError(f"x has shape {list(x.shape)}, expected [B, {self.in_channels}, h, w]")
        step = 2 ** (self.levels - 1)
        if any(size % step for size in x.shape[2:][-2:]):  # in 3-D the first keeps its size
            raise ValueError(f"x has shape {list(x.shape)}, expected h and w to be multiples of {step}")
        if timesteps is None and not self.run_without_timestep_conditioning:
            raise ValueError("got no timesteps, expected [B]; or build with run_without_timestep_conditioning=True")
        if (y is None) != (self.num_classes is None):
            got, expected = ("labels y", "none") if y is not None else ("no labels y", "y [B]")
            raise ValueError(f"got {got}, expected {expected} as num_classes is {self.num_classes}")
        check_context(context, self.context_widths, x.shape[0])


@dataclass(frozen=True)
class Levels:
    """Options that the encoder and the decoder of a U-Net share."""

    widths: Sequence[int]
    """Channels of each level."""
    num_res_blocks: int
    """Residual blocks of each level of the encoder; the decoder has one more."""
    attended: Collection[int]
    """Downsampling factors of the levels with attention."""
    res: MakeLayer
    """Returns a residual block for (channels, out_channels=...)."""


def down_path(
    levels: Levels, stem: nn.Module, stem_width: int, attention: MakeLayer, down: MakeLayer
) -> tuple[nn.ModuleList, list[int]]:
    """Returns the encoder's blocks and the number of output channels of each block."""
    blocks = nn.ModuleList([TimestepEmbedSequential(stem)])
    skips = [stem_width]
    for level, width in enumerate(levels.widths):
        for _ in range(levels.num_res_blocks):
            layers = [levels.res(skips[-1], out_channels=width)]
            if 2**level in levels.attended:
                layers.append(attention(width))
            blocks.append(TimestepEmbedSequential(*layers))
            skips.append(width)
        if level < len(levels.widths) - 1:
            blocks.append(TimestepEmbedSequential(down(width)))
            skips.append(width)
    return blocks, skips


def up_path(levels: Levels, skips: Sequence[int], attention: MakeLayer, up: MakeLayer) -> nn.ModuleList:
    """Returns the decoder's blocks, which take the encoder's outputs in reverse order."""
    blocks = nn.ModuleList()
    remaining = list(skips)
    current = levels.widths[-1]
    for level in reversed(range(len(levels.widths))):
        for index in range(levels.num_res_blocks + 1):
            layers = [levels.res(current + remaining.pop(), out_channels=levels.widths[level])]
            current = levels.widths[level]
            if 2**level in levels.attended:
                layers.append(attention(current))
            if level and index == levels.num_res_blocks:
                layers.append(up(current))
            blocks.append(TimestepEmbedSequential(*layers))
    return blocks
