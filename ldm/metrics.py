"""Distances between images ``[B, 3, H, W]`` in [-1, 1], one figure each ``[B]``; training and reports share them."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio ``[B]`` in dB of each image, over all its pixels, peak 1 in [0, 1]."""
    return -10 * (images / 2 - others / 2).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def l1(images: Tensor, others: Tensor) -> Tensor:
    """Returns the mean absolute difference ``[B]`` of each image, of values in [0, 1]."""
    return (images - others).abs().mean((1, 2, 3)) / 2


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Returns the structural similarity ``[B]`` (Wang et al. 2004): window of 11 pixels, sigma 1.5, RGB, in [0, 1]."""
    first, second = images / 2 + 0.5, others / 2 + 0.5  # a measure of positive values: its first term takes means apart
    found = structural_similarity_index_measure(second, first, data_range=1.0, reduction="none")
    return found.reshape(-1) if isinstance(found, Tensor) else found[0].reshape(-1)
