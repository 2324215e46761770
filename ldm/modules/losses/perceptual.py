"""Perceptual distances over networks a user has: CLIP's vision tower, or torchvision's networks from a file.

They stand in where LPIPS' weights cannot be had: features of some layers, normalised over channels, compared by squared
difference and averaged over positions and layers (Zhang et al. 2018, arXiv 1801.03924, without its learned weights).
Images are ``[B, 3, H, W]`` in [-1, 1].
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import load_weights, read_weights
from ldm.modules.encoders.clip import OpenClipEmbedder
from ldm.util import check_params, get_obj_from_str, instantiate_from_config

LOG = logging.getLogger(__name__)
# Where torchvision's networks are looked into, from edges to objects.
LAYERS = {
    "alexnet": ("features.1", "features.4", "features.7", "features.9", "features.11"),
    "mobilenet_v2": ("features.1", "features.3", "features.6", "features.13", "features.17"),
    "resnet18": ("relu", "layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("relu", "layer1", "layer2", "layer3", "layer4"),
    "vgg16": ("features.3", "features.8", "features.15", "features.22", "features.29"),
}


def perceptual_network(config: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> nn.Module:
    """Returns the network that a config describes; of a list, the first one whose weights can be had.

    Every one that was passed over is logged with its reason.

    Raises:
        ValueError: a config is wrong, or no weights can be had.
    """
    if isinstance(config, Mapping):
        return instantiate_from_config(config)
    for choice in config:
        check_params(choice["target"], get_obj_from_str(choice["target"]), choice.get("params") or {})
    reasons = []
    for choice in config:
        try:
            return instantiate_from_config(choice)
        except (OSError, ValueError) as error:
            reasons.append(f"{choice['target'].rpartition('.')[2]}: {error}")
            LOG.warning("perceptual network passed over: %s", reasons[-1])
    raise ValueError(f"perceptual: got {len(reasons)} networks, none of which can be had; {'; '.join(reasons)}")


class FeatureDistance(nn.Module):
    """Distance of a frozen network's features; a subclass says how they are made.

    The network moves with this module, but is neither trained nor stored with it: it comes from its own file.

    Args:
        network: the network.
        name: of network, weights and layers, as logs and results state it.
        mean: of the network's inputs, by channel, where images lie in [0, 1].
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.__dict__["network"] = network.float().eval().requires_grad_(False)
        self.name = name
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FeatureDistance:
        super()._apply(fn, recurse)
        self.__dict__["network"]._apply(fn, recurse)
        return self

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns the distance ``[B, 1, 1, 1]``, 0 for equal images and at most 4."""
        distances = []
        for x, y in zip(self.features(self.scaled(images)), self.features(self.scaled(others)), strict=True):
            difference = F.normalize(x.float(), dim=1, eps=1e-6) - F.normalize(y.float(), dim=1, eps=1e-6)
            distances.append(difference.square().sum(1, keepdim=True).mean((2, 3), keepdim=True))
        return torch.stack(distances).mean(0)

    def scaled(self, images: Tensor) -> Tensor:
        """Returns images ``[B, 3, H, W]`` as the network was trained on."""
        return (images / 2 + 0.5 - self.mean) / self.std

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """Returns one ``[B, C, h, w]`` a layer of scaled images, with a gradient to them."""


class ClipDistance(FeatureDistance):
    """Distance of features inside CLIP's vision tower.

    A convolutional tower sees images at their own size, a transformer at the one size it knows.

    Args:
        model: an open_clip architecture, or a folder in open_clip's local-directory form (``models/clip/emoji``).
        pretrained: open_clip's tag or a weights file; must be absent for a folder.
        layers: numbers of the blocks that are compared, from 0; up to five, evenly spread, where not given.

    Raises:
        ValueError: weights that cannot be had, or a layer the tower does not have.
        FileNotFoundError: no such folder.
    """

    def __init__(self, model: str, pretrained: str | None = None, layers: Sequence[int] | None = None) -> None:
        embedder = OpenClipEmbedder(model, pretrained)
        visual = embedder.clip.visual
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        depth = 5 if hasattr(visual, "layer4") else len(blocks) if blocks is not None else None
        if layers is None:
            count = min(5, depth or 4)
            # How many blocks another kind of tower has, only open_clip knows: its last ones.
            layers = list(range(-count, 0)) if depth is None else [(i + 1) * depth // count - 1 for i in range(count)]
        elif depth is not None and not all(0 <= layer < depth for layer in layers):
            raise ValueError(f"layers: got {list(layers)}, expected numbers from 0 to {depth - 1} for {model}")
        named = ", ".join(map(str, layers))
        name = f"ClipDistance of {embedder.name} ({embedder.fingerprint[:8]}), layers {named}"
        super().__init__(visual, name, embedder.mean.flatten().tolist(), embedder.std.flatten().tolist())
        self.layers, self.side = list(layers), None if hasattr(visual, "layer4") else embedder.image_size

    def features(self, images: Tensor) -> list[Tensor]:
        """Returns one ``[B, C, h, w]`` a layer."""
        if self.side is not None and images.shape[2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True)
        visual = self.__dict__["network"]
        found = visual.forward_intermediates(images, indices=self.layers, stop_early=True, intermediates_only=True)
        return found["image_intermediates"]


class TorchvisionDistance(FeatureDistance):
    """Distance of features of one of torchvision's networks.

    Args:
        network: torchvision's name of it, such as ``vgg16``, ``resnet18`` or ``mobilenet_v2``.
        weights: a local file of its weights, as torchvision distributes them.
        layers: dotted names of the layers that are compared; needed for networks other than :data:`LAYERS`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown network or layer, or weights of another network.
    """

    def __init__(self, network: str, weights: str | Path, layers: Sequence[str] | None = None) -> None:
        from torchvision.models import get_model
        from torchvision.models.feature_extraction import create_feature_extractor

        layers = list(layers if layers is not None else LAYERS.get(network, ()))
        if not layers:
            raise ValueError(f"layers: got none for {network}, expected dotted names; known are {', '.join(LAYERS)}")
        state = read_weights(weights)
        options = {"init_weights": False} if network in ("googlenet", "inception_v3") else {}
        model = get_model(network, weights=None, **options)
        load_weights(model, state, source=weights, allow=("classifier.*", "fc.*", "*.num_batches_tracked"))
        extractor = create_feature_extractor(model.eval(), layers)
        name = f"TorchvisionDistance of {network} ({Path(weights).name}), layers {', '.join(layers)}"
        super().__init__(extractor, name, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def features(self, images: Tensor) -> list[Tensor]:
        """Returns one ``[B, C, h, w]`` a layer."""
        return list(self.__dict__["network"](images).values())
