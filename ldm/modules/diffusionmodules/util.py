"""Functions that the networks share: time embeddings, gradient checkpointing, layers by number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from ldm.modules.layers import Conv2d, GroupNorm

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_CONV = {1: nn.Conv1d, 2: Conv2d, 3: nn.Conv3d}
_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Returns sinusoidal embeddings [B, dim] float32, cosines first, with a zero at the end if dim is odd.

    Args:
        timesteps: [B], integer or fractional.
        dim: width of the embedding.
        max_period: the longest wavelength, in units of 2 pi steps.

    Source: Ho et al. 2020 (DDPM), after Vaswani et al. 2017, section 3.5.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    # The product comes before the division, as in CompVis' code: the other order differs in the fifth digit at t = 999.
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) * steps / half)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return nn.functional.pad(embedding, (0, dim - 2 * half)) if dim % 2 else embedding


def checkpoint(function: Callable[..., Tensor], *inputs: Any, enabled: bool) -> Tensor:
    """Returns ``function(*inputs)``, which is recomputed in the backward pass if ``enabled`` and gradients are on.

    Inputs may be None, and parameters inside ``function`` may be frozen.
    """
    if enabled and torch.is_grad_enabled():
        return torch_checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


def zero_module(module: ModuleT) -> ModuleT:
    """Sets all parameters of a module to zero and returns it, so that a residual branch is zero at first."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def normalization(channels: int) -> nn.GroupNorm:
    """Returns the U-Net's norm: 32 groups, eps 1e-5.

    Raises:
        ValueError: the number of channels is no multiple of 32.
    """
    if channels % 32:
        raise ValueError(f"got {channels} channels, expected a multiple of 32; change model_channels")
    return GroupNorm(32, channels)


def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Returns a convolution over 1, 2 or 3 dimensions; further arguments are torch's."""
    return _CONV[dims](*args, **kwargs)


def avg_pool_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Returns an average pooling over 1, 2 or 3 dimensions; further arguments are torch's."""
    return _POOL[dims](*args, **kwargs)
