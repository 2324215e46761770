"""Networks as others load and feed them, each beside the name by which ``scripts/evaluate.py`` knows the same one."""

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
CLASSIFIER = "shufflenet_v2_x0_5"  # one of the smallest: 150 pictures a second of one core
SEED = 0  # of random weights
CALIBRATION = 32  # pictures that norms of random networks are measured on
SPREAD = 3.0  # deviation of a random network's logits: some pictures are certain, some are not
See = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Network:
    """One network, twice.

    Attributes:
        name: the script's name of it.
        words: what it is, for a table.
        extractor: torch-fidelity's class of it.
        features: the extractor's name of what distances are measured in.
        classifies: whether there are logits.
        options: further ones of torch-fidelity.
    """

    name: str
    words: str
    extractor: type[FeatureExtractorBase]
    features: str = "features"
    classifies: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def extractor(see: See) -> type[FeatureExtractorBase]:
    """Returns a class of torch-fidelity's that shows pictures to a function.

    Args:
        see: pictures ``[B, 3, H, W] uint8`` -> features ``[B, D] float32`` and, of a classifier, logits.
    """

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            found = dict(zip(self.get_provided_features_list(), see(pixels), strict=False))
            return tuple(found[name] for name in self.features_list)

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
        unit: scale features to length one.
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
        pixels: pictures ``[B, 3, H, W] uint8`` that norms are measured on.
        file: where weights are written, for the script.
    """
    transforms = get_model_weights(CLASSIFIER).DEFAULT.transforms()

    def prepare(pixels: Tensor) -> Tensor:
        resized = pictures.resize(pixels / 255, list(transforms.crop_size * 2), antialias=True)
        return pictures.normalize(resized, transforms.mean, transforms.std)

    model = random_network(CLASSIFIER, prepare(pixels))
    write_weights(file, model.state_dict())
    parts = create_feature_extractor(model, {"mean": "features", "fc": "logits"})

    def see(pixels: Tensor) -> tuple[Tensor, ...]:
        found = parts(prepare(pixels))
        return found["features"], found["logits"]

    return Network(f"{CLASSIFIER}:{file}", f"{CLASSIFIER}, random", extractor(see), classifies=True)


def inception(file: Path, words: str) -> Network:
    """Returns torch-fidelity's Inception, with the weights of a file."""
    options = {"feature_extractor_weights_path": str(file)}
    return Network(f"inception:{file}", words, FeatureExtractorInceptionV3, "2048", True, options)


def random_inception(pixels: Tensor, file: Path) -> Network:
    """Returns torch-fidelity's Inception with random weights, which are written to a file.

    Names and shapes are those of torchvision's.

    Args:
        pixels: pictures ``[B, 3, H, W] uint8`` that norms are measured on.
        file: where weights are written.
    """
    shown = F.interpolate((pixels - 128.0) / 128, (299, 299), mode="bilinear")
    options = {"num_classes": 1008, "aux_logits": False, "init_weights": False}
    torch.save(random_network("inception_v3", shown, **options).state_dict(), file)
    return inception(file, "Inception, random")


@torch.no_grad()
def random_network(name: str, shown: Tensor, **options: Any) -> nn.Module:
    """Returns one of torchvision's networks with random weights and features that differ between pictures.

    The statistics of its batch norms are those of the pictures shown, and its last layer looks away from their mean.

    Args:
        name: torchvision's name of it.
        shown: pictures as the network expects them, ``[B, 3, H, W]``.
        options: of the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = get_model(name, weights=None, **options).requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all batches, of which there is one
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
