"""LPIPS, the perceptual distance of Zhang et al. 2018 (arXiv 1801.03924), built without a network connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from ldm.checkpoint import load_weights, read_weights

# Layers of VGG16 up to each of the five activations that are compared, and their widths.
SLICES = ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30))
WIDTHS = (64, 128, 256, 512, 512)
INSIDE_A_CHECKPOINT = ("loss.perceptual_loss.", "first_stage_model.loss.perceptual_loss.")


class LPIPS(nn.Module):
    """Distance of VGG features, weighted by channel; state names are those of taming's class.

    Args:
        weights: a file with all 33 tensors: a state dict of this class, or a released first stage, which holds them
            under ``loss.perceptual_loss``. Without it the network waits for ``load_state_dict``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not hold these weights.
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
        if weights is not None:
            state = read_weights(weights)
            for prefix in INSIDE_A_CHECKPOINT:
                if any(name.startswith(prefix) for name in state):
                    state = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
            load_weights(self, state, source=weights)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Returns the distance ``[B, 1, 1, 1]`` of two batches of images ``[B, 3, H, W]`` in [-1, 1].

        Raises:
            ValueError: the network has no weights.
        """
        if not self.loaded:
            raise ValueError(
                "LPIPS has no weights; give 'weights': a file of them or a released first stage's model.ckpt"
            )
        x, y = self.scaling_layer(images), self.scaling_layer(others)
        total = images.new_zeros(())
        for number, part in enumerate(self.net.values()):
            x, y = part(x), part(y)
            difference = (F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)).square()
            total = total + self.get_submodule(f"lin{number}")(difference).mean((2, 3), keepdim=True)
        return total


class Scaling(nn.Module):
    """From [-1, 1] to the values VGG was trained on."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the same shape."""
        return (images - self.shift) / self.scale


class ChannelWeights(nn.Module):
    """One weight a channel: ``[B, C, h, w]`` to ``[B, 1, h, w]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, 1, h, w]``."""
        return self.model(x)


def _mark_loaded(module: Any, incompatible: Any) -> None:
    own = tuple(module.state_dict())  # what is missing may also belong to the model around this network
    module.loaded = not any(name.endswith(own) for name in incompatible.missing_keys)
