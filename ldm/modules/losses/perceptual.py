"""Perceptual distances without LPIPS' weights, with CLIP's vision tower, EfficientNet-Lite0, or torchvision's networks.

Features of several layers are normalised over channels. The distance is the squared difference of these features,
averaged over positions and layers (Zhang et al. 2018, arXiv 1801.03924, without its learned weights). Images are
``[B, 3, H, W]`` in [-1, 1].
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
from ldm.modules.encoders import efficientnet
from ldm.modules.encoders.clip import OpenClipEmbedder
from ldm.util import check_params, get_obj_from_str, instantiate_from_config

LOG = logging.getLogger(__name__)
# Default layers of torchvision's networks, from low-level to high-level features.
LAYERS = {
    "alexnet": ("features.1", "features.4", "features.7", "features.9", "features.11"),
    "mobilenet_v2": ("features.1", "features.3", "features.6", "features.13", "features.17"),
    "resnet18": ("relu", "layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("relu", "layer1", "layer2", "layer3", "layer4"),
    "vgg16": ("features.3", "features.8", "features.15", "features.22", "features.29"),
}
STAGES = 5  # of EfficientNet-Lite0


def perceptual_network(config: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> nn.Module:
    """Returns the network of a config; of a list of configs, the first network whose weights can be loaded.

    Each network that was skipped is logged with the reason.

    Raises:
        ValueError: a config is wrong, or no network's weights can be loaded.
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
            LOG.warning("perceptual network skipped: %s", reasons[-1])
    raise ValueError(f"perceptual: got {len(reasons)} networks, none of which can be loaded; {'; '.join(reasons)}")


class FeatureDistance(nn.Module):
    """Distance between a frozen network's features, which a subclass computes.

    The network moves between devices with this module. It is neither trained nor stored with it, because its weights
    come from their own file.

    Args:
        network: the network.
        name: description of network, weights and layers for logs and results.
        mean: mean of each channel of the network's training images in [0, 1].
        std: standard deviation of each channel of these images.
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
        """Returns the distance ``[B, 1, 1, 1]``, which is 0 for equal images and at most 4."""
        distances = []
        for x, y in zip(self.features(self.scaled(images)), self.features(self.scaled(others)), strict=True):
            difference = F.normalize(x.float(), dim=1, eps=1e-6) - F.normalize(y.float(), dim=1, eps=1e-6)
            distances.append(difference.square().sum(1, keepdim=True).mean((2, 3), keepdim=True))
        return torch.stack(distances).mean(0)

    def scaled(self, images: Tensor) -> Tensor:
        """Returns images ``[B, 3, H, W]`` with the normalisation of the network's training images."""
        return (images / 2 + 0.5 - self.mean) / self.std

    @abstractmethod
    def features(self, images: Tensor) -> list[Tensor]:
        """Returns the features ``[B, C, h, w]`` of each layer for scaled images; gradients reach the images."""


class ClipDistance(FeatureDistance):
    """Distance between features inside CLIP's vision tower.

    A convolutional tower gets images at their own size. For a transformer, images are resized to its input size.

    Args:
        model: an open_clip architecture, or a folder in open_clip's local-directory form (``models/clip/emoji``).
        pretrained: open_clip's tag or a file of weights; must be absent for a folder.
        layers: numbers of the blocks to compare, counted from 0; by default up to five, evenly spaced.

    Raises:
        ValueError: the weights cannot be loaded, or the tower does not have a layer.
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, model: str, pretrained: str | None = None, layers: Sequence[int] | None = None) -> None:
        embedder = OpenClipEmbedder(model, pretrained)
        visual = embedder.clip.visual
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        depth = 5 if hasattr(visual, "layer4") else len(blocks) if blocks is not None else None
        if layers is None:
            count = min(5, depth or 4)
            # Only open_clip knows the number of blocks of other kinds of towers, so that the last ones are taken.
            layers = list(range(-count, 0)) if depth is None else [(i + 1) * depth // count - 1 for i in range(count)]
        elif depth is not None and not all(0 <= layer < depth for layer in layers):
            raise ValueError(f"layers: got {list(layers)}, expected numbers from 0 to {depth - 1} for {model}")
        named = ", ".join(map(str, layers))
        name = f"ClipDistance of {embedder.name} ({embedder.fingerprint[:8]}), layers {named}"
        super().__init__(visual, name, embedder.mean.flatten().tolist(), embedder.std.flatten().tolist())
        self.layers, self.side = list(layers), None if hasattr(visual, "layer4") else embedder.image_size

    def features(self, images: Tensor) -> list[Tensor]:
        """Returns the features ``[B, C, h, w]`` of each layer."""
        if self.side is not None and images.shape[2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True)
        visual = self.__dict__["network"]
        found = visual.forward_intermediates(images, indices=self.layers, stop_early=True, intermediates_only=True)
        return found["image_intermediates"]


class TorchvisionDistance(FeatureDistance):
    """Distance between features of one of torchvision's networks.

    Args:
        network: torchvision's name of the network, such as ``vgg16``, ``resnet18`` or ``mobilenet_v2``.
        weights: a local file of its weights, as distributed by torchvision.
        layers: dotted names of the layers to compare; required for networks that are not in :data:`LAYERS`.

    Raises:
        FileNotFoundError: there is no such file.
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
        """Returns the features ``[B, C, h, w]`` of each layer."""
        return list(self.__dict__["network"](images).values())


class EfficientNetDistance(FeatureDistance):
    """Distance between features of EfficientNet-Lite0 that was trained on ImageNet. Images keep their own size.

    Args:
        weights: see :func:`ldm.modules.encoders.efficientnet.efficientnet_lite0`.
        layers: numbers of its stages to compare, from 0 (half the side) to 4 (a thirty-second of it); by default all.

    Raises:
        FileNotFoundError: the file does not exist, or none is given and the package is not installed.
        ValueError: the weights are of another network, or there is no such stage.
    """

    def __init__(self, weights: str | None = None, layers: Sequence[int] | None = None) -> None:
        chosen = list(range(STAGES) if layers is None else layers)
        if not chosen or not all(0 <= layer < STAGES for layer in chosen):
            raise ValueError(f"layers: got {chosen}, expected numbers from 0 to {STAGES - 1}")
        name = f"EfficientNetDistance, layers {', '.join(map(str, chosen))}"
        super().__init__(efficientnet.efficientnet_lite0(weights), name, efficientnet.MEAN, efficientnet.STD)
        self.layers = chosen

    def features(self, images: Tensor) -> list[Tensor]:
        """Returns the features ``[B, C, h, w]`` of each layer."""
        network = self.__dict__["network"]
        return network.forward_intermediates(images, indices=self.layers, intermediates_only=True)
