"""LPIPS, the perceptual distance of Zhang et al. 2018 (arXiv 1801.03924).

Its weights are those of VGG16 and one number for each channel. The weights of VGG16 come from a file or, with a network
connection, from torchvision's server. The others (7 kB, the same as taming's) are part of torchmetrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from ldm.checkpoint import load_weights, read_weights
from ldm.files import fetched

# Layers of VGG16 up to each of the five activations that are compared, and their widths.
SLICES = ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30))
WIDTHS = (64, 128, 256, 512, 512)
INSIDE_A_CHECKPOINT = ("loss.perceptual_loss.", "first_stage_model.loss.perceptual_loss.")


class LPIPS(nn.Module):
    """Distance between VGG features, with a weight for each channel. The weights have the names of taming's class.

    Args:
        weights: ``download`` for torchvision's VGG16, which is kept in torch's cache, or a file. The file is
            torchvision's VGG16 (``vgg16-397923af.pth``), a released first stage, which has all 33 tensors under
            ``loss.perceptual_loss``, or a state dict of this class. Without ``weights``, the network can be used
            only after ``load_state_dict``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not have these weights, or they cannot be downloaded.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        self.scaling_layer = Scaling()
        layers = make_layers(cfgs["D"])
        self.net = nn.ModuleDict()
        for number, (start, stop) in enumerate(SLICES, 1):
            part = self.net[f"slice{number}"] = nn.Sequential()
            for index in range(start, stop):
                part.add_module(str(index), layers[index])
        for number, width in enumerate(WIDTHS):
            self.add_module(f"lin{number}", ChannelWeights(width))
        self.loaded = False
        self.register_load_state_dict_post_hook(_mark_loaded)
        self.eval().requires_grad_(False)
        self.name = "LPIPS (VGG16)"
        if weights is not None:
            file = download_vgg() if weights == "download" else Path(weights)
            load_weights(self, own_names(read_weights(file)), source=file)
            self.name = f"LPIPS (VGG16 of {file.name})"

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns the distance ``[B, 1, 1, 1]`` between two batches of images ``[B, 3, H, W]`` in [-1, 1].

        Raises:
            ValueError: the network has no weights.
        """
        if not self.loaded:
            raise ValueError(
                "LPIPS has no weights; set 'weights' to a file of weights or to a released first stage's model.ckpt"
            )
        x, y = self.scaling_layer(images), self.scaling_layer(others)
        total = images.new_zeros(())
        for number, part in enumerate(self.net.values()):
            x, y = part(x), part(y)
            difference = (F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)).square()
            total = total + self.get_submodule(f"lin{number}")(difference).mean((2, 3), keepdim=True)
        return total


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint or of torchvision's VGG16 under the names of :class:`LPIPS`."""
    for prefix in INSIDE_A_CHECKPOINT:
        if any(name.startswith(prefix) for name in state):
            return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    if "features.0.weight" not in state:
        return dict(state)
    places = {str(i): f"net.slice{n}.{i}" for n, part in enumerate(SLICES, 1) for i in range(*part)}
    named = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        number, _, kind = rest.partition(".")
        if part == "features":
            named[f"{places.get(number, name)}.{kind}"] = tensor
    scaling = {f"scaling_layer.{name}": value for name, value in Scaling().state_dict().items()}
    return named | scaling | channel_weights()


def channel_weights() -> dict[str, Tensor]:
    """Returns the channels' weights, version 0.1 of LPIPS, from a file in torchmetrics.

    Raises:
        ValueError: this version of torchmetrics does not have it.
    """
    found = find_spec("torchmetrics")
    file = Path((found and found.origin) or "").parent / "functional" / "image" / "lpips_models" / "vgg.pth"
    if not file.is_file():
        raise ValueError("LPIPS: torchmetrics no longer has its weights; set 'weights' to a released first stage")
    return read_weights(file)


def download_vgg() -> Path:
    """Returns the path of torchvision's VGG16 in torch's cache, and downloads it first if it is not there.

    Raises:
        ValueError: it cannot be downloaded.
    """
    from torchvision.models import VGG16_Weights

    return fetched(
        VGG16_Weights.IMAGENET1K_V1.url,
        "download it on another machine and set 'weights' to the file of VGG16, or use a network that you have: "
        "ldm.modules.losses.perceptual.ClipDistance",
    )


class Scaling(nn.Module):
    """Maps images in [-1, 1] to the range of values on which VGG was trained."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the scaled images ``[B, 3, H, W]``."""
        return (images - self.shift) / self.scale


class ChannelWeights(nn.Module):
    """Weighted sum over channels, from ``[B, C, h, w]`` to ``[B, 1, h, w]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, 1, h, w]``."""
        return self.model(x)


def _mark_loaded(module: Any, incompatible: Any) -> None:
    own = tuple(module.state_dict())  # missing names can also be those of the model around this network
    module.loaded |= not any(name.endswith(own) for name in incompatible.missing_keys)
