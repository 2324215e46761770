"""Pixels of pictures, and hashes of them."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor

from ldm.pictures import to_uint8, with_channels


def picture_hash(pixels: np.ndarray) -> str:
    """Returns the SHA-256 of the pixels ``[H, W, 3] uint8`` of a picture, which does not depend on its file format."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def to_pixels(image: Tensor) -> np.ndarray:
    """Returns an image ``[3, H, W]`` or ``[1, H, W]`` in [-1, 1] as pixels ``[H, W, 3] uint8``."""
    return to_uint8(with_channels(image, 3)).permute(1, 2, 0).contiguous().numpy()
