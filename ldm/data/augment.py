"""Random changes of pictures that leave what they show: position, size, angle, colours, sharpness and noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.pictures import with_channels


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Returns ``[n, 1, 1, 1]`` numbers between ``low`` and ``high``."""
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)


def move(
    images: Tensor, generator: torch.Generator, shift: float, scale: tuple[float, float], degrees: float
) -> Tensor:
    """Returns images that are shifted, scaled and rotated; the border of an image is continued.

    Args:
        images: ``[B, 3, H, W]``.
        generator: source of the randomness.
        shift: largest shift along each axis, as a share of the side.
        scale: smallest and largest factor of the size.
        degrees: largest angle of the rotation.
    """
    n = len(images)
    angle = uniform(n, -1, 1, generator).view(n) * math.radians(degrees)
    zoom = 1 / uniform(n, *scale, generator).view(n)
    across, down = (2 * shift * uniform(n, -1, 1, generator).view(n) for _ in range(2))
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    matrix = torch.stack([cos, -sin, across, sin, cos, down], dim=1).view(n, 2, 3).to(images)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def recolour(
    images: Tensor, generator: torch.Generator, brightness: float, contrast: float, saturation: float
) -> Tensor:
    """Returns images ``[B, 3, H, W]`` in [-1, 1] of another brightness, contrast and saturation, but of the same hue.

    Args:
        images: the images.
        generator: source of the randomness.
        brightness: largest change, where black and white differ by 2.
        contrast: largest share by which the distances to the image's mean change.
        saturation: largest share by which the distances of a pixel's channels to its grey value change.
    """
    n = len(images)
    grey = with_channels(images, 1)
    images = torch.lerp(grey, images, uniform(n, 1 - saturation, 1 + saturation, generator).to(images))
    mean = grey.mean((2, 3), keepdim=True)
    images = torch.lerp(mean, images, uniform(n, 1 - contrast, 1 + contrast, generator).to(images))
    return (images + uniform(n, -brightness, brightness, generator).to(images)).clamp(-1, 1)


def soften(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Returns images of which a share is blurred, each by another mixture with its means over 3x3 pixels.

    Args:
        images: ``[B, 3, H, W]``.
        generator: source of the randomness.
        share: probability that an image is blurred.
    """
    n = len(images)
    blurred = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    amount = uniform(n, 0, 1, generator) * (uniform(n, 0, 1, generator) < share)
    return torch.lerp(images, blurred, amount.to(images))


def add_noise(images: Tensor, generator: torch.Generator, largest: float) -> Tensor:
    """Returns images ``[B, 3, H, W]`` with normal noise, whose standard deviation differs from image to image.

    Args:
        images: the images.
        generator: source of the randomness.
        largest: largest standard deviation.
    """
    noise = torch.randn(images.shape, generator=generator).to(images)
    return images + noise * uniform(len(images), 0, largest, generator).to(images)
