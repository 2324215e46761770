"""Feature networks that are loaded without code of this project, each with its name in ``scripts/evaluate.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase, FeatureExtractorInceptionV3
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import functional as pictures

from ldm.checkpoint import write_weights

CLIP = "models/clip/emoji"
CLASSIFIER = "shufflenet_v2_x0_5"  # one of the smallest: 150 pictures per second on one core
SEED = 0  # seed of random weights
CALIBRATION = 32  # pictures from which batch norms of random networks get their statistics
SPREAD = 3.0  # standard deviation of a random network's logits, so that some predictions are certain and some are not
See = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Network:
    """A feature network by its name in the script and as a class of torch-fidelity.

    Attributes:
        name: its name in the script.
        words: its description in the table.
        extractor: its class for torch-fidelity.
        features: the extractor's name of the features.
        classifies: whether the network has logits.
        options: further options of torch-fidelity.
    """

    name: str
    words: str
    extractor: type[FeatureExtractorBase]
    features: str = "features"
    classifies: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def extractor(see: See) -> type[FeatureExtractorBase]:
    """Returns a class for torch-fidelity that computes features by a function.

    Args:
        see: pictures ``[B, 3, H, W] uint8`` -> features ``[B, D] float32`` and, of a classifier, logits.
    """

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            outputs = dict(zip(self.get_provided_features_list(), see(pixels), strict=False))
            return tuple(outputs[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    return Extractor


def emoji_clip(unit: bool) -> Network:
    """Returns the shipped CLIP as open_clip loads it and prepares pictures for it.

    Args:
        unit: whether features are scaled to length one.
    """
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{CLIP}")
    model.eval()

    def see(pixels: Tensor) -> tuple[Tensor, ...]:
        batch = torch.stack([prepare(pictures.to_pil_image(picture)) for picture in pixels])
        return (model.encode_image(batch, normalize=unit).float(),)

    name, words = (f"unit:{CLIP}", "emoji CLIP, length one") if unit else (CLIP, "emoji CLIP")
    return Network(name, words, extractor(see))


def classifier(pixels: Tensor, file: Path) -> Network:
    """Returns one of torchvision's classifiers with random weights.

    Args:
        pixels: pictures ``[B, 3, H, W] uint8`` that give batch norms their statistics.
        file: file for the weights, which the script reads.
    """
    transforms = get_model_weights(CLASSIFIER).DEFAULT.transforms()

    def prepare(pixels: Tensor) -> Tensor:
        resized = pictures.resize(pixels / 255, list(transforms.crop_size * 2), antialias=True)
        return pictures.normalize(resized, transforms.mean, transforms.std)

    model = random_network(CLASSIFIER, prepare(pixels))
    write_weights(file, model.state_dict())
    parts = create_feature_extractor(model, {"mean": "features", "fc": "logits"})

    def see(pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = parts(prepare(pixels))
        return outputs["features"], outputs["logits"]

    return Network(f"{CLASSIFIER}:{file}", f"{CLASSIFIER}, random", extractor(see), classifies=True)


def inception(file: Path, words: str) -> Network:
    """Returns torch-fidelity's Inception, with the weights of a file."""
    options = {"feature_extractor_weights_path": str(file)}
    return Network(f"inception:{file}", words, FeatureExtractorInceptionV3, "2048", True, options)


def random_inception(pixels: Tensor, file: Path) -> Network:
    """Returns torch-fidelity's Inception with random weights, which are also written to a file.

    Parameters have the names and shapes of torchvision's Inception.

    Args:
        pixels: pictures ``[B, 3, H, W] uint8`` that give batch norms their statistics.
        file: file for the weights.
    """
    shown = F.interpolate((pixels - 128.0) / 128, (299, 299), mode="bilinear")
    options = {"num_classes": 1008, "aux_logits": False, "init_weights": False}
    torch.save(random_network("inception_v3", shown, **options).state_dict(), file)
    return inception(file, "Inception, random")


@torch.no_grad()
def random_network(name: str, shown: Tensor, **options: Any) -> nn.Module:
    """Returns one of torchvision's networks with random weights and features that differ between pictures.

    Its batch norms have the statistics of the pictures, and its last layer ignores the mean of their features.

    Args:
        name: torchvision's name of the network.
        shown: pictures with the network's preprocessing, ``[B, 3, H, W]``.
        options: options of the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = get_model(name, weights=None, **options).requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # takes the statistics of the only batch
        model.train()(shown)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    entering: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, given: entering.append(given[0]))
    model.eval()(shown)
    handle.remove()
    mean = F.normalize(entering[0].mean(0), dim=0)
    last.weight -= torch.outer(last.weight @ mean, mean)
    last.weight *= SPREAD / (entering[0] @ last.weight.T).std()
    return model
