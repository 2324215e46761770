"""Real pictures and real embedders, small enough for tests of retrieval."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint import write_weights


class ProjectionEmbedder(nn.Module):
    """Pictures to a random projection of their 4x4 thumbnail, texts to one of their letter counts."""

    def __init__(self, dim: int = 8, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.by_pixel = nn.Parameter(torch.randn(48, dim, generator=generator), requires_grad=False)
        self.by_letter = nn.Parameter(torch.randn(256, dim, generator=generator), requires_grad=False)
        self.name, self.dim = f"projection-{seed}", dim
        self.fingerprint = hashlib.sha256(self.by_pixel.numpy().tobytes()).hexdigest()

    def images(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, 4).flatten(1) @ self.by_pixel

    def texts(self, texts: list[str]) -> Tensor:
        counts = [torch.bincount(torch.tensor(list(text.encode())), minlength=256) for text in texts]
        return torch.stack(counts).float() @ self.by_letter


# How tests build databases: in shards of eight pictures.
QUIET = {"batch_size": 4, "shard_rows": 8, "progress": False}


SIZES = [(40, 24), (33, 61), (20, 20), (12, 90), (64, 64), (50, 31), (28, 28)]  # of pictures of :func:`write_large`


def write_large(folder: Path, sizes: list[tuple[int, int]] = SIZES) -> dict[str, Any]:
    """Writes noise pictures of several sizes and returns the config of the data set, delivered at 8 pixels."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    for number, (width, height) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return {"target": "ldm.data.ImageFolder", "params": {"root": str(folder), "size": 8}}


def write_pictures(folder: Path, count: int, seed: int = 0, classes: int = 2) -> dict[str, Any]:
    """Writes `count` pictures of 8x8 in class folders and returns the config of the data set."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        file = folder / f"class{number % classes}" / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return {"target": "ldm.data.ImageFolder", "params": {"root": str(folder), "size": 8}}


def bomb() -> bytes:
    """A PNG of 20000 x 20000 grey pixels in 50 kB."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"\0" * 2501 * 20000, 9))


def write_clip(folder: Path, seed: int = 0) -> str:
    """Writes a tiny untrained CLIP in open_clip's local form and returns its folder."""
    torch.manual_seed(seed)
    model = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "patch_size": 4, "head_width": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}
    weights = open_clip.CLIP(**model).state_dict()
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    write_weights(folder / "open_clip_model.safetensors", weights)
    return str(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
